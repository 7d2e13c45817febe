//! Mode `vendor`: one call of a mechanism that PKCS#11 has no name for. The clear PIN stays inside
//! the token, and its firmware makes the checks.
//!
//! The number comes from `[vendor]` of the key register. The layouts of parameters are compiled in:
//!
//! `pin-translate-1` is [`PinTranslate`], given to C_DecryptInit under the inbound key; C_Decrypt
//! takes the block and gives the new one. A block that is no PIN block is answered
//! CKR_ENCRYPTED_DATA_INVALID. A retail MAC is C_Sign; its parameter is one byte, the padding method
//! of ISO 9797-1 (1 or 2).

use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::vendor_defined::VendorDefinedMechanism;
use cryptoki::object::ObjectHandle;
use cryptoki_sys::CK_OBJECT_HANDLE;
use zeroize::{Zeroize, Zeroizing};

use crate::error::{CkrClass, Failure};
use crate::register::VendorMechanism;
use crate::vocabulary::{MacPadding, Pan, PinBlock, PinBlockFormat};
use crate::worker::raw::mechanism_type;
use crate::worker::token::TokenSession;

/// The parameter in layout `pin-translate-1`, in the machine's own byte order.
#[repr(C)]
struct PinTranslate {
    outbound: CK_OBJECT_HANDLE,
    /// 0, 1, 3 or 4.
    from_format: u8,
    to_format: u8,
    /// Digits of `pan`.
    pan_length: u8,
    /// ASCII, zeros behind them.
    pan: [u8; 19],
    padding: [u8; 2],
}

/// The block under the other key. Errors: `KeyNotForThis` for a cell that the register does not
/// name, `PinBlockRefused` for everything that is wrong with the block, and the token's own.
pub(crate) fn translate(
    session: &TokenSession,
    vendor: &VendorMechanism,
    pan: &Pan,
    block: &PinBlock,
    from: (ObjectHandle, PinBlockFormat),
    to: (ObjectHandle, PinBlockFormat),
) -> Result<PinBlock, Failure> {
    if !vendor.cells.contains(&(from.1, to.1)) {
        let (from, to) = (from.1, to.1);
        return Err(Failure::KeyNotForThis(format!(
            "{from} to {to} is no cell of [vendor.pin_translate]"
        )));
    }
    if block.expose().len() != from.1.block_bytes() {
        return Err(Failure::PinBlockRefused);
    }
    let digits = Zeroizing::new(pan.expose());
    let mut parameter = PinTranslate {
        outbound: to.0.handle(),
        from_format: number(from.1),
        to_format: number(to.1),
        pan_length: digits.len() as u8,
        pan: [0; 19],
        padding: [0; 2],
    };
    parameter.pan[..digits.len()].copy_from_slice(digits.as_bytes());
    let number = mechanism_type(vendor.number);
    let mechanism = VendorDefinedMechanism::new(number, Some(&parameter));
    let answer = session.decrypt(&Mechanism::VendorDefined(mechanism), from.0, block.expose());
    parameter.pan.zeroize();
    match answer.map_err(Failure::from) {
        Ok(block) if block.len() == to.1.block_bytes() => {
            PinBlock::new(block.to_vec()).map_err(|_| Failure::PinBlockRefused)
        }
        Ok(block) => Err(Failure::Token {
            function: "Decrypt".into(),
            code: format!("{} bytes of a PIN block of {}", block.len(), to.1.block_bytes()),
            class: CkrClass::Restart,
        }),
        Err(Failure::Token { class: CkrClass::Caller, .. }) => Err(Failure::PinBlockRefused),
        Err(failure) => Err(failure),
    }
}

/// The whole retail MAC, 8 bytes.
pub(crate) fn retail_mac(
    session: &TokenSession,
    vendor: &VendorMechanism,
    key: ObjectHandle,
    padding: Option<MacPadding>,
    message: &[u8],
) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let padding: u8 = match padding {
        Some(MacPadding::One) => 1,
        Some(MacPadding::Two) | None => 2,
    };
    let mechanism = VendorDefinedMechanism::new(mechanism_type(vendor.number), Some(&padding));
    Ok(Zeroizing::new(session.sign(&Mechanism::VendorDefined(mechanism), key, message)?))
}

fn number(format: PinBlockFormat) -> u8 {
    match format {
        PinBlockFormat::Iso0 => 0,
        PinBlockFormat::Iso1 => 1,
        PinBlockFormat::Iso3 => 3,
        PinBlockFormat::Iso4 => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a vendor's manual would draw: handle, two formats, length, 19 digits, two bytes of nothing.
    #[test]
    fn the_layout_is_32_bytes_without_holes() {
        use std::mem::{offset_of, size_of};
        assert_eq!(size_of::<PinTranslate>(), 32);
        assert_eq!(offset_of!(PinTranslate, from_format), 8);
        assert_eq!(offset_of!(PinTranslate, pan_length), 10);
        assert_eq!(offset_of!(PinTranslate, pan), 11);
        assert_eq!(offset_of!(PinTranslate, padding), 30);
    }
}
