//! Data keys for the queue: drawn in the token, wrapped under its KEK (RFC 5649).

use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, KeyType, ObjectClass};
use subtle::ConstantTimeEq as _;

use crate::error::{CkrClass, Failure};
use crate::protocol::ClearDataKey;
use crate::worker::keys::LoadedKey;
use crate::worker::passing::Passing;
use crate::worker::token::TokenSession;

/// A new AES-256 key, clear and wrapped.
pub(crate) fn make(
    session: &TokenSession,
    kek: &LoadedKey,
) -> Result<(ClearDataKey, Vec<u8>), Failure> {
    let mut template = template();
    template.push(Attribute::ValueLen(32.into()));
    let object = session
        .session
        .generate_key(&Mechanism::AesKeyGen, &template)
        .map_err(crate::error::TokenError::from)?;
    let object = Passing { session, object };
    let wrapped = session
        .session
        .wrap_key(&Mechanism::AesKeyWrapPad, kek.object, object.object)
        .map_err(crate::error::TokenError::from)?;
    Ok((value(&object)?, wrapped))
}

/// The clear key. What does not unwrap under this KEK is the caller's error.
pub(crate) fn open(
    session: &TokenSession,
    kek: &LoadedKey,
    wrapped: &[u8],
) -> Result<ClearDataKey, Failure> {
    // 32 bytes under RFC 5649 are 40; anything else is no data key of ours.
    if wrapped.len() != 40 {
        return Err(refused());
    }
    let object = session
        .session
        .unwrap_key(&Mechanism::AesKeyWrapPad, kek.object, wrapped, &template())
        .map_err(crate::error::TokenError::from)?;
    value(&Passing { session, object })
}

/// The same key wrapped under another KEK, and opened from there once: what does not open again would
/// be lost with all that it seals.
pub(crate) fn rewrap(
    session: &TokenSession,
    from: &LoadedKey,
    to: &LoadedKey,
    wrapped: &[u8],
) -> Result<Vec<u8>, Failure> {
    if wrapped.len() != 40 {
        return Err(refused());
    }
    let object = session
        .session
        .unwrap_key(&Mechanism::AesKeyWrapPad, from.object, wrapped, &template())
        .map_err(crate::error::TokenError::from)?;
    let object = Passing { session, object };
    let anew = session
        .session
        .wrap_key(&Mechanism::AesKeyWrapPad, to.object, object.object)
        .map_err(crate::error::TokenError::from)?;
    let (before, after) = (value(&object)?, open(session, to, &anew)?);
    if !bool::from(before.expose().ct_eq(after.expose())) {
        return Err(Failure::Token {
            function: "WrapKey".into(),
            code: "what was wrapped opens as another key".into(),
            class: CkrClass::Restart,
        });
    }
    Ok(anew)
}

/// A session object that lives for one call and may be read by the worker.
fn template() -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(false),
        Attribute::Extractable(true),
    ]
}

fn value(object: &Passing<'_>) -> Result<ClearDataKey, Failure> {
    let session = object.session;
    let value = session.raw.value(&session.session, object.object)?;
    ClearDataKey::from_slice(&value).ok_or_else(refused)
}

fn refused() -> Failure {
    Failure::Token {
        function: "UnwrapKey".into(),
        code: "not a data key of 32 bytes".into(),
        class: CkrClass::Caller,
    }
}
