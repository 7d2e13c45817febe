//! Two mechanisms of a vendor that does not exist, as payment HSMs have them.
//!
//! | number | call | parameter |
//! |---|---|---|
//! | 0x80000201 | C_DecryptInit under the inbound key, C_Decrypt of the block | [`Translate`] |
//! | 0x80000135 | C_SignInit, C_Sign: ISO 9797-1 algorithm 3 | one byte: padding 1 or 2 |
//!
//! Their keys name the number in CKA_ALLOWED_MECHANISMS; a MAC key has SIGN, a PIN key no use at all.
//! A block that is no PIN block is answered CKR_ENCRYPTED_DATA_INVALID.

use std::collections::HashMap;
use std::mem::offset_of;
use std::sync::{Mutex, PoisonError};

use cryptoki_sys::{
    CK_MECHANISM_TYPE, CK_OBJECT_HANDLE, CK_RV, CK_SESSION_HANDLE, CK_ULONG, CKA_CLASS,
    CKA_ENCRYPT, CKA_KEY_TYPE, CKA_PRIVATE, CKA_SIGN, CKA_TOKEN, CKA_VALUE, CKK_AES, CKK_DES2,
    CKK_DES3, CKM_AES_ECB, CKM_DES3_CBC, CKM_DES3_ECB, CKO_SECRET_KEY, CKR_ENCRYPTED_DATA_INVALID,
    CKR_ENCRYPTED_DATA_LEN_RANGE, CKR_KEY_TYPE_INCONSISTENT, CKR_MECHANISM_INVALID,
    CKR_MECHANISM_PARAM_INVALID, CKR_OPERATION_ACTIVE,
};
use zeroize::Zeroizing;

use crate::emulate::read_value;
use crate::masks::Objects;
use crate::pin;
use crate::raw::{Mechanism, Output, Template, number};
use crate::target::{Answer, Session};

/// Translates a PIN block.
pub(crate) const TRANSLATE_PIN: CK_MECHANISM_TYPE = 0x8000_0201;
/// Makes a retail MAC.
pub(crate) const RETAIL_MAC: CK_MECHANISM_TYPE = 0x8000_0135;

/// The parameter of 0x80000201, layout `pin-translate-1`. Formats are 0, 1, 3 or 4; `pan` is ASCII
/// digits, left-aligned; what follows them is ignored.
#[repr(C)]
pub(crate) struct Translate {
    outbound: CK_OBJECT_HANDLE,
    from_format: u8,
    to_format: u8,
    pan_length: u8,
    pan: [u8; 19],
    padding: [u8; 2],
}

/// What a session has begun.
#[derive(Default)]
pub(crate) struct Operations {
    decrypt: Mutex<HashMap<CK_SESSION_HANDLE, Translation>>,
    sign: Mutex<HashMap<CK_SESSION_HANDLE, Mac>>,
}

#[derive(Clone)]
struct Translation {
    inbound: CK_OBJECT_HANDLE,
    outbound: CK_OBJECT_HANDLE,
    from: u8,
    to: u8,
    pan: Vec<u8>,
}

#[derive(Clone, Copy)]
struct Mac {
    key: CK_OBJECT_HANDLE,
    padding: u8,
}

impl Operations {
    /// C_DecryptInit.
    pub(crate) fn begin_translation(
        &self,
        objects: &Objects,
        session: Session<'_>,
        mechanism: &Mechanism<'_>,
        inbound: CK_OBJECT_HANDLE,
    ) -> Answer<()> {
        let translation =
            Translation::parse(mechanism.parameter, inbound).ok_or(CKR_MECHANISM_PARAM_INVALID)?;
        let Translation { outbound, from, to, .. } = translation;
        for (key, format) in [(inbound, from), (outbound, to)] {
            let object = objects.of(session, key);
            if !object.allowed(session, key)?.contains(&TRANSLATE_PIN) {
                return Err(CKR_MECHANISM_INVALID);
            }
            let kind = number(&object.attribute(session, key, CKA_KEY_TYPE)?);
            let fits = match format {
                4 => kind == Some(CKK_AES),
                _ => matches!(kind, Some(CKK_DES2 | CKK_DES3)),
            };
            if !fits {
                return Err(CKR_KEY_TYPE_INCONSISTENT);
            }
        }
        begin(&self.decrypt, session, translation)
    }

    /// C_SignInit.
    pub(crate) fn begin_mac(
        &self,
        objects: &Objects,
        session: Session<'_>,
        mechanism: &Mechanism<'_>,
        key: CK_OBJECT_HANDLE,
    ) -> Answer<()> {
        let &[padding @ (1 | 2)] = mechanism.parameter else {
            return Err(CKR_MECHANISM_PARAM_INVALID);
        };
        let object = objects.of(session, key);
        object.permit(session, key, CKA_SIGN, RETAIL_MAC)?;
        if number(&object.attribute(session, key, CKA_KEY_TYPE)?) != Some(CKK_DES3) {
            return Err(CKR_KEY_TYPE_INCONSISTENT);
        }
        begin(&self.sign, session, Mac { key, padding })
    }

    /// C_Decrypt, when the session has begun a translation.
    pub(crate) fn translate(
        &self,
        session: Session<'_>,
        block: &[u8],
        output: Output,
    ) -> Option<CK_RV> {
        let begun = lock(&self.decrypt).get(&session.handle).cloned()?;
        let length = pin::block_bytes(begun.to).unwrap_or_default();
        if let Err(rv) = output.announce(length) {
            return Some(rv);
        }
        if output.is_query() {
            return Some(cryptoki_sys::CKR_OK);
        }
        lock(&self.decrypt).remove(&session.handle);
        Some(begun.run(session, block).map_or_else(|rv| rv, |block| output.write(&block)))
    }

    /// C_Sign, when the session has begun a retail MAC.
    pub(crate) fn mac(
        &self,
        objects: &Objects,
        session: Session<'_>,
        message: &[u8],
        output: Output,
    ) -> Option<CK_RV> {
        let begun = *lock(&self.sign).get(&session.handle)?;
        if let Err(rv) = output.announce(8) {
            return Some(rv);
        }
        if output.is_query() {
            return Some(cryptoki_sys::CKR_OK);
        }
        lock(&self.sign).remove(&session.handle);
        Some(begun.run(objects, session, message).map_or_else(|rv| rv, |mac| output.write(&mac)))
    }

    /// Ends what the session has begun.
    pub(crate) fn forget(&self, session: CK_SESSION_HANDLE) {
        lock(&self.decrypt).remove(&session);
        lock(&self.sign).remove(&session);
    }

    pub(crate) fn forget_all(&self) {
        lock(&self.decrypt).clear();
        lock(&self.sign).clear();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn begin<T>(
    begun: &Mutex<HashMap<CK_SESSION_HANDLE, T>>,
    session: Session<'_>,
    operation: T,
) -> Answer<()> {
    let mut begun = lock(begun);
    if begun.contains_key(&session.handle) {
        return Err(CKR_OPERATION_ACTIVE);
    }
    begun.insert(session.handle, operation);
    Ok(())
}

impl Translation {
    /// `None` for formats that do not exist, a change that no device makes, or a bad PAN.
    fn parse(parameter: &[u8], inbound: CK_OBJECT_HANDLE) -> Option<Self> {
        if parameter.len() != size_of::<Translate>() {
            return None;
        }
        let byte = |at: usize| parameter[at];
        let outbound = number(&parameter[..size_of::<CK_ULONG>()])?;
        let from = byte(offset_of!(Translate, from_format));
        let to = byte(offset_of!(Translate, to_format));
        pin::block_bytes(from).and(pin::block_bytes(to))?;
        let length = usize::from(byte(offset_of!(Translate, pan_length)));
        let first = offset_of!(Translate, pan);
        let pan = parameter[first..offset_of!(Translate, padding)].get(..length)?;
        let digits: Vec<u8> = pan.iter().map(|digit| digit.wrapping_sub(b'0')).collect();
        let long = length >= 8 || from == 1 && to == 1;
        let good = long && digits.iter().all(|digit| *digit <= 9);
        // What has lost its PAN could be joined to another one.
        let kept = to != 1 || from == 1;
        (good && kept).then_some(Self { inbound, outbound, from, to, pan: digits })
    }

    fn run(&self, session: Session<'_>, block: &[u8]) -> Answer<Zeroizing<Vec<u8>>> {
        if Some(block.len()) != pin::block_bytes(self.from) {
            return Err(CKR_ENCRYPTED_DATA_LEN_RANGE);
        }
        let ecb = |format| Mechanism::plain(if format == 4 { CKM_AES_ECB } else { CKM_DES3_ECB });
        let mut clear = session.decrypt(&ecb(self.from), self.inbound, block)?;
        xor(&mut clear, &pin::pan_field(self.from, &self.pan));
        if self.from == 4 {
            clear = session.decrypt(&ecb(4), self.inbound, &clear)?;
        }
        let pin = pin::decode(self.from, &clear).ok_or(CKR_ENCRYPTED_DATA_INVALID)?;
        let mut clear = pin::encode(self.to, &pin, &session.random(16)?);
        if self.to == 4 {
            clear = session.encrypt(&ecb(4), self.outbound, &clear)?;
        }
        xor(&mut clear, &pin::pan_field(self.to, &self.pan));
        session.encrypt(&ecb(self.to), self.outbound, &clear)
    }
}

fn xor(bytes: &mut [u8], other: &[u8]) {
    for (byte, other) in bytes.iter_mut().zip(other) {
        *byte ^= other;
    }
}

impl Mac {
    /// CBC under K1 over all blocks but the last; the last one under the whole key.
    fn run(
        self,
        objects: &Objects,
        session: Session<'_>,
        message: &[u8],
    ) -> Answer<Zeroizing<Vec<u8>>> {
        let mut padded = Zeroizing::new(message.to_vec());
        if self.padding == 2 {
            padded.push(0x80);
        }
        let whole = padded.len().next_multiple_of(8).max(8);
        padded.resize(whole, 0);
        let (chained, last) = padded.split_at(whole - 8);
        let mut block = Zeroizing::new(last.to_vec());
        let value = read_value(objects, session, self.key)?;
        if !chained.is_empty() {
            let left = passing_key(session, &Zeroizing::new(value[..8].repeat(3)))?;
            let left = session.passing(left);
            let cbc = Mechanism { kind: CKM_DES3_CBC, parameter: &[0; 8] };
            let chain = session.encrypt(&cbc, left.object, chained)?;
            xor(&mut block, &chain[chain.len() - 8..]);
        }
        let whole = session.passing(passing_key(session, &value)?);
        session.encrypt(&Mechanism::plain(CKM_DES3_ECB), whole.object, &block)
    }
}

fn passing_key(session: Session<'_>, value: &[u8]) -> Answer<CK_OBJECT_HANDLE> {
    session.create(&mut Template::new(&[
        (CKA_CLASS, &CKO_SECRET_KEY.to_ne_bytes()),
        (CKA_KEY_TYPE, &CKK_DES3.to_ne_bytes()),
        (CKA_TOKEN, &[0]),
        (CKA_PRIVATE, &[1]),
        (CKA_ENCRYPT, &[1]),
        (CKA_VALUE, value),
    ]))
}
