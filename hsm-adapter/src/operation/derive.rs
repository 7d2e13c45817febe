//! What the token derives from a key that opens key blocks: variants, and blocks read back.

use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::misc::KeyDerivationStringData;
use cryptoki::object::{Attribute, KeyType, ObjectClass, ObjectHandle};
use zeroize::Zeroizing;

use crate::error::TokenError;
use crate::worker::passing::{Passing, derive_as};
use crate::worker::token::TokenSession;

/// A passing key: `base` xor `data`.
pub(crate) fn xor<'s>(
    session: &'s TokenSession,
    base: ObjectHandle,
    data: &[u8],
    template: &[Attribute],
) -> Result<Passing<'s>, TokenError> {
    let mechanism = Mechanism::XorBaseAndData(KeyDerivationStringData::new(data));
    let template = session.traits.held(template.to_vec());
    let object = session.session.derive_key(&mechanism, base, &template)?;
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
    let object = derive_as(session, base, &template, block)?;
    let value = session.raw.value(&session.session, object.object)?;
    if value.len() == 16 {
        return Ok(value);
    }
    Err(TokenError::Library("a derived block was not readable".into()))
}
