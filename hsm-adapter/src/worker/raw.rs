//! What cryptoki 0.12 cannot say: this crate's one FFI corner.
//!
//! Mechanisms that PKCS#11 defines and cryptoki has no name for, the mechanism list of a key that
//! holds one of them, the length of a key in one call, and the token's own description where its
//! clock is no clock to cryptoki.
#![expect(unsafe_code, reason = "cryptoki has no safe call for these")]

use std::mem::{MaybeUninit, size_of};
use std::path::Path;
use std::ptr;

use cryptoki::context::Function;
use cryptoki::error::Rv;
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::ObjectHandle;
use cryptoki::session::Session;
use cryptoki::slot::Slot;
use cryptoki_sys::{
    CK_ATTRIBUTE, CK_ATTRIBUTE_TYPE, CK_BYTE, CK_FUNCTION_LIST, CK_MECHANISM, CK_MECHANISM_TYPE,
    CK_OBJECT_HANDLE, CK_RV, CK_SESSION_HANDLE, CK_SLOT_ID, CK_TOKEN_INFO, CK_ULONG,
    CKA_ALLOWED_MECHANISMS, CKA_UNWRAP_TEMPLATE, CKA_VALUE, CKA_VALUE_LEN, CKR_OK,
};

use zeroize::Zeroizing;

use crate::error::TokenError;

/// The mechanism type with this standard number: cryptoki names only some of them.
#[must_use]
pub fn mechanism_type(number: CK_MECHANISM_TYPE) -> MechanismType {
    // SAFETY: `MechanismType` is `repr(transparent)` over `CK_MECHANISM_TYPE` (it says so in its
    // source, so that vectors of both have one layout), and every number is a valid value of it.
    unsafe { std::mem::transmute::<CK_MECHANISM_TYPE, MechanismType>(number) }
}

type GetAttributeValue =
    unsafe extern "C" fn(CK_SESSION_HANDLE, CK_OBJECT_HANDLE, *mut CK_ATTRIBUTE, CK_ULONG) -> CK_RV;

type GetTokenInfo = unsafe extern "C" fn(CK_SLOT_ID, *mut CK_TOKEN_INFO) -> CK_RV;

type WrapKey = unsafe extern "C" fn(
    CK_SESSION_HANDLE,
    *mut CK_MECHANISM,
    CK_OBJECT_HANDLE,
    CK_OBJECT_HANDLE,
    *mut CK_BYTE,
    *mut CK_ULONG,
) -> CK_RV;

/// A PIN block of format 4 is 16 bytes, and no more than another block is ever added to it.
const WRAPPED_BYTES_MAX: usize = 64;

/// The longest key that is read back.
const VALUE_BYTES_MAX: usize = 64;

/// The module's own C_GetAttributeValue, C_GetTokenInfo and C_WrapKey.
#[derive(Clone, Copy)]
pub(crate) struct RawModule {
    get_attribute_value: GetAttributeValue,
    get_token_info: GetTokenInfo,
    wrap_key: WrapKey,
}

/// What a token calls itself; padding taken off.
pub(crate) struct TokenWords {
    pub(crate) label: String,
    /// Manufacturer, model, serial, firmware.
    pub(crate) description: String,
}

impl RawModule {
    /// Takes the function out of a module that cryptoki has loaded and initialised already.
    pub(crate) fn of(module: &Path) -> Result<Self, String> {
        let missing = || "the module has no C_GetAttributeValue or C_GetTokenInfo".to_owned();
        // SAFETY: loading runs the module's constructors; cryptoki has run them already, so that
        // this only counts one more user of the same library.
        let library =
            unsafe { cryptoki_sys::Pkcs11::new(module) }.map_err(|error| error.to_string())?;
        let mut list: *mut CK_FUNCTION_LIST = ptr::null_mut();
        // SAFETY: `list` is a valid place for one pointer, which is all that the call writes.
        let rv = unsafe { library.C_GetFunctionList(&mut list) };
        if rv != CKR_OK || list.is_null() {
            return Err(missing());
        }
        // SAFETY: the module answered CKR_OK, so `list` points to its function list, which lives as
        // long as the module is loaded; it is never unloaded (see the forget below).
        let get_attribute_value = unsafe { (*list).C_GetAttributeValue }.ok_or_else(missing)?;
        // SAFETY: as above.
        let get_token_info = unsafe { (*list).C_GetTokenInfo }.ok_or_else(missing)?;
        std::mem::forget(library);
        // SAFETY: as above.
        let wrap_key = unsafe { (*list).C_WrapKey }.ok_or_else(missing)?;
        Ok(Self { get_attribute_value, get_token_info, wrap_key })
    }

    /// C_WrapKey in one call. cryptoki asks for the length first, and opencryptoki answers that
    /// question, not the wrap itself, with DATA_LEN_RANGE when it would have to pad.
    pub(crate) fn wrap(
        &self,
        session: &Session,
        mechanism: &Mechanism<'_>,
        key: ObjectHandle,
        object: ObjectHandle,
    ) -> Result<Vec<u8>, TokenError> {
        let mut raw_mechanism = CK_MECHANISM::from(mechanism);
        let mut wrapped = [0; WRAPPED_BYTES_MAX];
        let mut length = WRAPPED_BYTES_MAX as CK_ULONG;
        // SAFETY: the handles come from cryptoki and are alive; `raw_mechanism` borrows what
        // `mechanism` holds, which outlives the call; `wrapped` is a buffer of `length` bytes, and a
        // module may not write beyond it.
        let rv = unsafe {
            (self.wrap_key)(
                session.handle(),
                &mut raw_mechanism,
                key.handle(),
                object.handle(),
                wrapped.as_mut_ptr(),
                &mut length,
            )
        };
        Rv::from(rv).into_result(Function::WrapKey)?;
        let length = usize::try_from(length).unwrap_or(WRAPPED_BYTES_MAX);
        Ok(wrapped[..length.min(WRAPPED_BYTES_MAX)].to_vec())
    }

    /// The token in a slot. cryptoki's own call fails as a
    /// whole when a token's clock string is not digits, as opencryptoki's is not.
    pub(crate) fn token_words(&self, slot: Slot) -> Result<TokenWords, TokenError> {
        let mut info = MaybeUninit::<CK_TOKEN_INFO>::zeroed();
        // SAFETY: the module is initialised, and `info` is room for what the call writes.
        let rv = unsafe { (self.get_token_info)(slot.id(), info.as_mut_ptr()) };
        Rv::from(rv).into_result(Function::GetTokenInfo)?;
        // SAFETY: zeros are a valid value of each of its fields (numbers and bytes), so it was
        // initialised before the call, and the call answered CKR_OK.
        let info = unsafe { info.assume_init() };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
        let firmware = info.firmwareVersion;
        Ok(TokenWords {
            label: text(&info.label),
            description: format!(
                "{} {} {} firmware {}.{}",
                text(&info.manufacturerID),
                text(&info.model),
                text(&info.serialNumber),
                firmware.major,
                firmware.minor
            ),
        })
    }

    /// CKA_ALLOWED_MECHANISMS of a key. An empty list means that the key has none, or that the
    /// token does not say.
    pub(crate) fn allowed_mechanisms(
        &self,
        session: &Session,
        object: ObjectHandle,
    ) -> Vec<CK_MECHANISM_TYPE> {
        // A key of ours has one mechanism; a longer list is a deviation whatever it holds.
        let mut mechanisms = [0 as CK_MECHANISM_TYPE; 64];
        let mut attribute = CK_ATTRIBUTE {
            type_: CKA_ALLOWED_MECHANISMS,
            pValue: mechanisms.as_mut_ptr().cast(),
            ulValueLen: size_of_val(&mechanisms) as CK_ULONG,
        };
        // SAFETY: the handles come from cryptoki and are alive; `attribute` names a buffer of
        // `ulValueLen` bytes that outlives the call, and a module may not write beyond it.
        let rv = unsafe {
            (self.get_attribute_value)(session.handle(), object.handle(), &mut attribute, 1)
        };
        let bytes = usize::try_from(attribute.ulValueLen).unwrap_or(usize::MAX);
        if rv != CKR_OK || bytes > size_of_val(&mechanisms) {
            return Vec::new();
        }
        mechanisms[..bytes / size_of::<CK_MECHANISM_TYPE>()].to_vec()
    }

    /// CKA_VALUE of a passing object that may be read, at most [`VALUE_BYTES_MAX`] bytes. cryptoki reads
    /// into a buffer of its own, and frees it as it is.
    pub(crate) fn value(
        &self,
        session: &Session,
        object: ObjectHandle,
    ) -> Result<Zeroizing<Vec<u8>>, TokenError> {
        let mut value = Zeroizing::new(vec![0; VALUE_BYTES_MAX]);
        let mut attribute = CK_ATTRIBUTE {
            type_: CKA_VALUE,
            pValue: value.as_mut_ptr().cast(),
            ulValueLen: VALUE_BYTES_MAX as CK_ULONG,
        };
        // SAFETY: the handles come from cryptoki and are alive; `attribute` names a buffer of
        // `ulValueLen` bytes that outlives the call, and a module may not write beyond it.
        let rv = unsafe {
            (self.get_attribute_value)(session.handle(), object.handle(), &mut attribute, 1)
        };
        Rv::from(rv).into_result(Function::GetAttributeValue)?;
        value.truncate(usize::try_from(attribute.ulValueLen).unwrap_or(VALUE_BYTES_MAX));
        Ok(value)
    }

    /// CKA_VALUE_LEN of a secret key, in bytes; cryptoki would call three times. `None` when the
    /// token does not say.
    pub(crate) fn value_bytes(&self, session: &Session, object: ObjectHandle) -> Option<usize> {
        let mut bytes: CK_ULONG = 0;
        let mut attribute = CK_ATTRIBUTE {
            type_: CKA_VALUE_LEN,
            pValue: ptr::from_mut(&mut bytes).cast(),
            ulValueLen: size_of::<CK_ULONG>() as CK_ULONG,
        };
        // SAFETY: the handles come from cryptoki and are alive; `attribute` names one CK_ULONG that
        // outlives the call, and a module may not write beyond it.
        let rv = unsafe {
            (self.get_attribute_value)(session.handle(), object.handle(), &mut attribute, 1)
        };
        (rv == CKR_OK).then(|| usize::try_from(bytes).ok()).flatten()
    }

    /// The flags of a key's CKA_UNWRAP_TEMPLATE. Empty: it has none, or the token does not say. What
    /// is no flag reads as an attribute of number 0, which no template of ours has.
    pub(crate) fn unwrap_template(
        &self,
        session: &Session,
        object: ObjectHandle,
    ) -> Vec<(CK_ATTRIBUTE_TYPE, bool)> {
        let mut values = [[0u8; 8]; 32];
        let nothing = CK_ATTRIBUTE { type_: 0, pValue: ptr::null_mut(), ulValueLen: 0 };
        let mut inner = [nothing; 32];
        let mut attribute = CK_ATTRIBUTE { type_: CKA_UNWRAP_TEMPLATE, ..nothing };
        let ask = |attribute: &mut CK_ATTRIBUTE| {
            // SAFETY: the handles come from cryptoki and are alive; `attribute` names no buffer, or
            // `inner`, of which it gives no more bytes than it has, and those attributes name no
            // buffers, or `values`, with their lengths. All outlive the call.
            let rv = unsafe {
                (self.get_attribute_value)(session.handle(), object.handle(), attribute, 1)
            };
            rv == CKR_OK
        };
        // The number of attributes, then their lengths, then their values.
        let good = ask(&mut attribute);
        let count =
            usize::try_from(attribute.ulValueLen).unwrap_or(usize::MAX) / size_of::<CK_ATTRIBUTE>();
        if !good || count > inner.len() {
            return Vec::new();
        }
        attribute.pValue = inner.as_mut_ptr().cast();
        if !ask(&mut attribute) {
            return Vec::new();
        }
        for (one, value) in inner.iter_mut().zip(&mut values).take(count) {
            if one.ulValueLen != 1 {
                return vec![(0, false)];
            }
            one.pValue = value.as_mut_ptr().cast();
        }
        if !ask(&mut attribute) {
            return Vec::new();
        }
        let found = inner.iter().zip(&values).take(count);
        found.map(|(one, value)| (one.type_, value[0] != 0)).collect()
    }
}
