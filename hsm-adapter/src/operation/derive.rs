//! Keys and blocks that the token derives from another key: AES_ECB_ENCRYPT_DATA, XOR_BASE_AND_DATA.

use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::misc::KeyDerivationStringData;
use cryptoki::mechanism::vendor_defined::VendorDefinedMechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki_sys::CKM_AES_ECB_ENCRYPT_DATA;
use zeroize::Zeroizing;

use crate::error::TokenError;
use crate::worker::passing::Passing;
use crate::worker::raw::mechanism_type;
use crate::worker::token::TokenSession;

/// A passing key whose value begins `data` enciphered under `base`, block by block. `template`
/// says its type, length and use.
pub(crate) fn aes_ecb<'s>(
    session: &'s TokenSession,
    base: ObjectHandle,
    data: &[u8],
    template: &[Attribute],
) -> Result<Passing<'s>, TokenError> {
    let parameter = KeyDerivationStringData::new(data);
    let mechanism = Mechanism::VendorDefined(VendorDefinedMechanism::new(
        mechanism_type(CKM_AES_ECB_ENCRYPT_DATA),
        Some(&parameter),
    ));
    let object = session.session.derive_key(&mechanism, base, template)?;
    Ok(Passing { session, object })
}

/// A passing key: `base` xor `data`.
pub(crate) fn xor<'s>(
    session: &'s TokenSession,
    base: ObjectHandle,
    data: &[u8],
    template: &[Attribute],
) -> Result<Passing<'s>, TokenError> {
    let mechanism = Mechanism::XorBaseAndData(KeyDerivationStringData::new(data));
    let object = session.session.derive_key(&mechanism, base, template)?;
    Ok(Passing { session, object })
}

/// One block enciphered under a key that may only derive, read back into this process's memory.
pub(crate) fn readable_block(
    session: &TokenSession,
    base: ObjectHandle,
    block: &[u8],
) -> Result<Zeroizing<Vec<u8>>, TokenError> {
    let template = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::GENERIC_SECRET),
        Attribute::ValueLen(16.into()),
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(false),
        Attribute::Extractable(true),
    ];
    let object = aes_ecb(session, base, block, &template)?;
    let found = session.session.get_attributes(object.object, &[AttributeType::Value])?;
    for attribute in found {
        if let Attribute::Value(value) = attribute {
            let value = Zeroizing::new(value);
            if value.len() == 16 {
                return Ok(value);
            }
        }
    }
    Err(TokenError::Library("a derived block was not readable".into()))
}
