//! C_UnwrapKey, C_WrapKey and C_DeriveKey by mechanisms that the target has not.
//!
//! Unwrap is C_Decrypt and C_CreateObject. Wrap and derive read the object out under a throw-away
//! key. Every attribute that would refuse this on a device is asked first.

use cryptoki_sys::{
    CK_KEY_DERIVATION_STRING_DATA, CK_MECHANISM_TYPE, CK_OBJECT_HANDLE, CKA_CLASS, CKA_DERIVE,
    CKA_ENCRYPT, CKA_EXTRACTABLE, CKA_KEY_TYPE, CKA_PRIVATE, CKA_SENSITIVE, CKA_TOKEN, CKA_TRUSTED,
    CKA_UNWRAP, CKA_UNWRAP_TEMPLATE, CKA_VALUE, CKA_VALUE_LEN, CKA_WRAP, CKA_WRAP_WITH_TRUSTED,
    CKK_AES, CKK_DES, CKK_DES2, CKK_DES3, CKK_GENERIC_SECRET, CKM_AES_CBC, CKM_AES_ECB,
    CKM_AES_KEY_GEN, CKM_AES_KEY_WRAP_PAD, CKM_CONCATENATE_BASE_AND_DATA,
    CKM_CONCATENATE_BASE_AND_KEY, CKM_CONCATENATE_DATA_AND_BASE, CKM_DES3_CBC, CKM_DES3_ECB,
    CKM_EXTRACT_KEY_FROM_KEY, CKM_XOR_BASE_AND_DATA, CKO_SECRET_KEY, CKR_ATTRIBUTE_VALUE_INVALID,
    CKR_GENERAL_ERROR, CKR_KEY_NOT_WRAPPABLE, CKR_KEY_TYPE_INCONSISTENT, CKR_KEY_UNEXTRACTABLE,
    CKR_MECHANISM_INVALID, CKR_MECHANISM_PARAM_INVALID, CKR_TEMPLATE_INCOMPLETE,
    CKR_TEMPLATE_INCONSISTENT, CKR_WRAPPED_KEY_LEN_RANGE, CKR_WRAPPING_KEY_TYPE_INCONSISTENT,
};
use zeroize::Zeroizing;

use crate::masks::{Objects, Origin, disguise};
use crate::raw::{Mechanism, Output, Template, bytes, number};
use crate::target::{Answer, READABLE, Session};

/// Block and key types of a cipher that wraps.
fn cipher(kind: CK_MECHANISM_TYPE) -> Option<(usize, &'static [u64])> {
    match kind {
        CKM_DES3_ECB | CKM_DES3_CBC => Some((8, &[CKK_DES2, CKK_DES3])),
        CKM_AES_ECB | CKM_AES_CBC => Some((16, &[CKK_AES])),
        _ => None,
    }
}

/// Whether the shim derives by this mechanism.
pub(crate) fn is_derivation(kind: &CK_MECHANISM_TYPE) -> bool {
    [
        CKM_XOR_BASE_AND_DATA,
        CKM_CONCATENATE_BASE_AND_KEY,
        CKM_CONCATENATE_BASE_AND_DATA,
        CKM_CONCATENATE_DATA_AND_BASE,
        CKM_EXTRACT_KEY_FROM_KEY,
    ]
    .contains(kind)
}

/// The block size, when mechanism, parameter and key fit together.
fn fitting(
    objects: &Objects,
    session: Session<'_>,
    mechanism: &Mechanism<'_>,
    key: CK_OBJECT_HANDLE,
) -> Answer<Option<usize>> {
    let (block, types) = cipher(mechanism.kind).ok_or(CKR_MECHANISM_INVALID)?;
    let chained = matches!(mechanism.kind, CKM_DES3_CBC | CKM_AES_CBC);
    if mechanism.parameter.len() != if chained { block } else { 0 } {
        return Err(CKR_MECHANISM_PARAM_INVALID);
    }
    let kind = number(&objects.of(session, key).attribute(session, key, CKA_KEY_TYPE)?);
    Ok(kind.is_some_and(|kind| types.contains(&kind)).then_some(block))
}

/// C_UnwrapKey.
pub(crate) fn unwrap(
    objects: &Objects,
    session: Session<'_>,
    mechanism: &Mechanism<'_>,
    key: CK_OBJECT_HANDLE,
    wrapped: &[u8],
    mut template: Template<'_>,
) -> Answer<CK_OBJECT_HANDLE> {
    let object = objects.of(session, key);
    let emulated = cipher(mechanism.kind).is_some();
    if object.is_masked() {
        object.permit(session, key, CKA_UNWRAP, mechanism.kind)?;
    }
    // The target would compare its template with the widened one: compare the caller's here.
    if emulated {
        for (kind, value) in session.template(key, CKA_UNWRAP_TEMPLATE).unwrap_or_default() {
            if template.value(kind) != Some(&value) {
                return Err(CKR_TEMPLATE_INCONSISTENT);
            }
        }
    }
    disguise(&mut template, Origin::Given)?;
    if !(object.is_masked() && emulated) {
        match session.unwrap(mechanism, key, wrapped, &mut template) {
            Err(CKR_MECHANISM_INVALID) if emulated => {}
            answered => return answered,
        }
        object.permit(session, key, CKA_UNWRAP, mechanism.kind)?;
    }
    let block = fitting(objects, session, mechanism, key)?.ok_or(CKR_KEY_TYPE_INCONSISTENT)?;
    if wrapped.is_empty() || !wrapped.len().is_multiple_of(block) {
        return Err(CKR_WRAPPED_KEY_LEN_RANGE);
    }
    let mut value = session.decrypt(mechanism, key, wrapped)?;
    shorten(&mut value, &template)?;
    put(session, template, &value)
}

/// C_WrapKey.
pub(crate) fn wrap(
    objects: &Objects,
    session: Session<'_>,
    mechanism: &Mechanism<'_>,
    wrapping: CK_OBJECT_HANDLE,
    key: CK_OBJECT_HANDLE,
    forward: impl FnOnce() -> u64,
    output: Output,
) -> u64 {
    let (outer, inner) = (objects.of(session, wrapping), objects.of(session, key));
    let emulated = cipher(mechanism.kind).is_some();
    let masked = outer.is_masked() || inner.is_masked();
    if !(masked && emulated) {
        if masked && let Err(rv) = permit_wrap(objects, session, mechanism, wrapping, key) {
            return rv;
        }
        match forward() {
            CKR_MECHANISM_INVALID | CKR_GENERAL_ERROR if emulated => {}
            answered => return answered,
        }
    }
    let wrapped = permit_wrap(objects, session, mechanism, wrapping, key).and_then(|()| {
        let block = fitting(objects, session, mechanism, wrapping)?
            .ok_or(CKR_WRAPPING_KEY_TYPE_INCONSISTENT)?;
        let length = value_length(objects, session, key)?.next_multiple_of(block);
        output.announce(length)?;
        if output.is_query() {
            return Ok(None);
        }
        let mut value = read_value(objects, session, key)?;
        value.resize(length, 0);
        session.encrypt(mechanism, wrapping, &value).map(Some)
    });
    match wrapped {
        Ok(Some(wrapped)) => output.write(&wrapped),
        Ok(None) => cryptoki_sys::CKR_OK,
        Err(rv) => rv,
    }
}

fn permit_wrap(
    objects: &Objects,
    session: Session<'_>,
    mechanism: &Mechanism<'_>,
    wrapping: CK_OBJECT_HANDLE,
    key: CK_OBJECT_HANDLE,
) -> Answer<()> {
    let (outer, inner) = (objects.of(session, wrapping), objects.of(session, key));
    outer.permit(session, wrapping, CKA_WRAP, mechanism.kind)?;
    if number(&inner.attribute(session, key, CKA_CLASS)?) != Some(CKO_SECRET_KEY) {
        return Err(CKR_KEY_NOT_WRAPPABLE);
    }
    if !inner.flag(session, key, CKA_EXTRACTABLE)? {
        return Err(CKR_KEY_UNEXTRACTABLE);
    }
    let guarded = inner.flag(session, key, CKA_WRAP_WITH_TRUSTED)?;
    if guarded && !outer.flag(session, wrapping, CKA_TRUSTED)? {
        return Err(CKR_KEY_NOT_WRAPPABLE);
    }
    Ok(())
}

/// C_DeriveKey.
pub(crate) fn derive(
    objects: &Objects,
    session: Session<'_>,
    mechanism: &Mechanism<'_>,
    base: CK_OBJECT_HANDLE,
    mut template: Template<'_>,
) -> Answer<CK_OBJECT_HANDLE> {
    let object = objects.of(session, base);
    let emulated = is_derivation(&mechanism.kind);
    if object.is_masked() {
        object.permit(session, base, CKA_DERIVE, mechanism.kind)?;
    }
    let (open, free) = (template.flag(CKA_SENSITIVE), template.flag(CKA_EXTRACTABLE));
    disguise(&mut template, Origin::Given)?;
    match session.derive(mechanism, base, &mut template) {
        Err(CKR_MECHANISM_INVALID) if emulated => {}
        answered => return answered,
    }
    object.permit(session, base, CKA_DERIVE, mechanism.kind)?;
    let second = match mechanism.kind {
        CKM_CONCATENATE_BASE_AND_KEY => {
            Some(mechanism.number().ok_or(CKR_MECHANISM_PARAM_INVALID)?)
        }
        _ => None,
    };
    // A derived key is as closed as the keys that it comes from.
    for part in [Some(base), second].into_iter().flatten() {
        let from = objects.of(session, part);
        let opened = from.flag(session, part, CKA_SENSITIVE)? && open == Some(false);
        let freed = !from.flag(session, part, CKA_EXTRACTABLE)? && free == Some(true);
        if opened || freed {
            return Err(CKR_TEMPLATE_INCONSISTENT);
        }
    }
    let value = read_value(objects, session, base)?;
    let mut derived = match mechanism.kind {
        CKM_XOR_BASE_AND_DATA => {
            let data = string_data(mechanism)?;
            Zeroizing::new(value.iter().zip(data).map(|(left, right)| left ^ right).collect())
        }
        CKM_CONCATENATE_BASE_AND_DATA => joined(&value, string_data(mechanism)?),
        CKM_CONCATENATE_DATA_AND_BASE => joined(string_data(mechanism)?, &value),
        CKM_CONCATENATE_BASE_AND_KEY => {
            let second = second.ok_or(CKR_MECHANISM_PARAM_INVALID)?;
            joined(&value, &read_value(objects, session, second)?)
        }
        _ => extracted(&value, mechanism, &template)?,
    };
    shorten(&mut derived, &template)?;
    if template.value(CKA_CLASS).is_none() {
        template.set(CKA_CLASS, &CKO_SECRET_KEY.to_ne_bytes());
    }
    if template.value(CKA_KEY_TYPE).is_none() {
        template.set(CKA_KEY_TYPE, &CKK_GENERIC_SECRET.to_ne_bytes());
    }
    put(session, template, &derived)
}

fn joined(first: &[u8], second: &[u8]) -> Zeroizing<Vec<u8>> {
    Zeroizing::new([first, second].concat())
}

/// As many bits as the new key has, from the bit that the parameter names, round the end.
fn extracted(
    value: &[u8],
    mechanism: &Mechanism<'_>,
    template: &Template<'_>,
) -> Answer<Zeroizing<Vec<u8>>> {
    let first = mechanism.number().ok_or(CKR_MECHANISM_PARAM_INVALID)? as usize;
    let length = match (template.number(CKA_VALUE_LEN), template.number(CKA_KEY_TYPE)) {
        (Some(length), _) => length as usize,
        (None, Some(kind)) => fixed_length(kind).ok_or(CKR_TEMPLATE_INCOMPLETE)?,
        (None, None) => return Err(CKR_TEMPLATE_INCOMPLETE),
    };
    let bits = value.len() * 8;
    if first >= bits || length > value.len() {
        return Err(CKR_MECHANISM_PARAM_INVALID);
    }
    let mut extracted = Zeroizing::new(vec![0; length]);
    for at in 0..length * 8 {
        let from = (first + at) % bits;
        let bit = value[from / 8] >> (7 - from % 8) & 1;
        extracted[at / 8] |= bit << (7 - at % 8);
    }
    Ok(extracted)
}

fn string_data<'a>(mechanism: &Mechanism<'a>) -> Answer<&'a [u8]> {
    if mechanism.parameter.len() != size_of::<CK_KEY_DERIVATION_STRING_DATA>() {
        return Err(CKR_MECHANISM_PARAM_INVALID);
    }
    // SAFETY: as many bytes as the structure has; by the standard they are one.
    let data: CK_KEY_DERIVATION_STRING_DATA = unsafe {
        mechanism.parameter.as_ptr().cast::<CK_KEY_DERIVATION_STRING_DATA>().read_unaligned()
    };
    // SAFETY: by the standard it points to that many bytes, which stay for the call.
    Ok(unsafe { bytes(data.pData, data.ulLen) })
}

/// The value's bytes that the template wants: VALUE_LEN, or what the key type has.
fn shorten(value: &mut Zeroizing<Vec<u8>>, template: &Template<'_>) -> Answer<()> {
    let fixed = template.number(CKA_KEY_TYPE).and_then(fixed_length);
    let length = template.number(CKA_VALUE_LEN).map(|length| length as usize).or(fixed);
    match length {
        None => Ok(()),
        Some(length) if length == 0 || length > value.len() => Err(CKR_ATTRIBUTE_VALUE_INVALID),
        Some(length) => {
            value.truncate(length);
            Ok(())
        }
    }
}

fn fixed_length(kind: u64) -> Option<usize> {
    match kind {
        CKK_DES => Some(8),
        CKK_DES2 => Some(16),
        CKK_DES3 => Some(24),
        _ => None,
    }
}

fn put(session: Session<'_>, mut template: Template<'_>, value: &[u8]) -> Answer<CK_OBJECT_HANDLE> {
    // SoftHSM takes the length of a given value from the value alone.
    template.remove(CKA_VALUE_LEN);
    template.set(CKA_VALUE, value);
    session.create(&mut template)
}

fn value_length(objects: &Objects, session: Session<'_>, key: CK_OBJECT_HANDLE) -> Answer<usize> {
    let object = objects.of(session, key);
    let kind = number(&object.attribute(session, key, CKA_KEY_TYPE)?);
    if let Some(length) = kind.and_then(fixed_length) {
        return Ok(length);
    }
    let length = number(&object.attribute(session, key, CKA_VALUE_LEN)?);
    length.map(|length| length as usize).ok_or(CKR_GENERAL_ERROR)
}

/// The value of a key: read out under a throw-away key, and cut to its length, because SoftHSM
/// fills it to whole blocks of eight.
pub(crate) fn read_value(
    objects: &Objects,
    session: Session<'_>,
    key: CK_OBJECT_HANDLE,
) -> Answer<Zeroizing<Vec<u8>>> {
    let length = value_length(objects, session, key)?;
    let mut template = Template::new(&[
        (CKA_TOKEN, &[0]),
        (CKA_PRIVATE, &[1]),
        (CKA_WRAP, &[1]),
        (CKA_UNWRAP, &[1]),
        (CKA_ENCRYPT, &[0]),
        (CKA_VALUE_LEN, &32_u64.to_ne_bytes()),
    ]);
    let kek = session.generate(&Mechanism::plain(CKM_AES_KEY_GEN), &mut template)?;
    let kek = session.passing(kek);
    let wrap = Mechanism::plain(CKM_AES_KEY_WRAP_PAD);
    let wrapped = session.wrap(&wrap, kek.object, key)?;
    let mut template = Template::new(&READABLE);
    template.set(CKA_CLASS, &CKO_SECRET_KEY.to_ne_bytes());
    template.set(CKA_KEY_TYPE, &CKK_GENERIC_SECRET.to_ne_bytes());
    let read = session.unwrap(&wrap, kek.object, &wrapped, &mut template)?;
    let read = session.passing(read);
    let mut value = session.attribute(read.object, CKA_VALUE)?;
    value.truncate(length);
    Ok(value)
}
