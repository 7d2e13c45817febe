//! Mechanisms that PKCS#11 defines and cryptoki 0.12 cannot name: this crate's one FFI corner.
#![expect(unsafe_code, reason = "MechanismType has no constructor from a number")]

use cryptoki::mechanism::MechanismType;
use cryptoki_sys::CK_MECHANISM_TYPE;

/// The mechanism type with this standard number.
pub(crate) fn mechanism_type(number: CK_MECHANISM_TYPE) -> MechanismType {
    // SAFETY: `MechanismType` is `repr(transparent)` over `CK_MECHANISM_TYPE` (it says so in its
    // source, so that vectors of both have one layout), and every number is a valid value of it.
    unsafe { std::mem::transmute::<CK_MECHANISM_TYPE, MechanismType>(number) }
}
