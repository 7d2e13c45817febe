//! What a key says of itself, beside what it is inside.
//!
//! An emulated C_UnwrapKey is a C_Decrypt of the target, so the key behind it needs DECRYPT, which a
//! zone PIN key of a real HSM has not. The shim adds such attributes when a key is made through
//! it, and keeps what the application declared with the object itself, as bytes inside
//! CKA_WRAP_TEMPLATE, which SoftHSM stores and which only wrapping reads. So it holds for every
//! process that opens the token through the shim, and goes when the object goes.
//!
//! A hidden attribute cannot be changed afterwards.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use cryptoki_sys::{
    CK_ATTRIBUTE, CK_ATTRIBUTE_TYPE, CK_MECHANISM_TYPE, CK_OBJECT_HANDLE, CK_RV, CK_ULONG,
    CKA_ALLOWED_MECHANISMS, CKA_CLASS, CKA_DECRYPT, CKA_DERIVE, CKA_ENCRYPT, CKA_EXTRACTABLE,
    CKA_KEY_TYPE, CKA_NEVER_EXTRACTABLE, CKA_TRUSTED, CKA_UNWRAP, CKA_VALUE, CKA_VENDOR_DEFINED,
    CKA_WRAP, CKA_WRAP_TEMPLATE, CKA_WRAP_WITH_TRUSTED, CKK_AES, CKK_DES2, CKK_DES3, CKM_AES_CBC,
    CKM_AES_ECB, CKM_AES_KEY_GEN, CKM_DES3_CBC, CKM_DES3_ECB, CKM_DES3_KEY_GEN, CKO_SECRET_KEY,
    CKR_ATTRIBUTE_READ_ONLY, CKR_ATTRIBUTE_SENSITIVE, CKR_ATTRIBUTE_TYPE_INVALID,
    CKR_BUFFER_TOO_SMALL, CKR_KEY_FUNCTION_NOT_PERMITTED, CKR_MECHANISM_INVALID, CKR_OK,
};

use crate::emulate::is_derivation;
use crate::raw::{Template, UNAVAILABLE, numbers};
use crate::target::{Answer, Session, call};
use crate::vendor;

/// What the application declared where the object behind is another.
type Declared = BTreeMap<CK_ATTRIBUTE_TYPE, Vec<u8>>;

/// The type of the one attribute inside CKA_WRAP_TEMPLATE: "TG".
const MARK: CK_ATTRIBUTE_TYPE = CKA_VENDOR_DEFINED | 0x5447;

/// Objects that are remembered; more are read again.
const OBJECTS_MAX: usize = 4096;

/// What is known of objects by handle. A target never gives a handle twice in one life.
#[derive(Default)]
pub(crate) struct Objects(Mutex<HashMap<CK_OBJECT_HANDLE, Arc<Object>>>);

/// What is known of one object.
#[derive(Default)]
pub(crate) struct Object {
    declared: Declared,
    /// Attributes that were read for an emulation; only of objects that are remembered.
    read: Mutex<BTreeMap<CK_ATTRIBUTE_TYPE, Vec<u8>>>,
}

impl Objects {
    /// The object, read from the target at first. One that cannot be read has nothing hidden: the
    /// call for which it was wanted says why.
    pub(crate) fn of(&self, session: Session<'_>, handle: CK_OBJECT_HANDLE) -> Arc<Object> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&handle).cloned();
        if let Some(known) = known {
            return known;
        }
        let declared = match session.template(handle, CKA_WRAP_TEMPLATE) {
            Ok(inner) => match inner.as_slice() {
                [(MARK, bytes)] => unpack(bytes),
                _ => Declared::new(),
            },
            Err(CKR_ATTRIBUTE_TYPE_INVALID) => Declared::new(),
            Err(_) => return Arc::default(),
        };
        let object = Arc::new(Object { declared, ..Object::default() });
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= OBJECTS_MAX {
            all.clear();
        }
        all.insert(handle, object.clone());
        object
    }

    pub(crate) fn forget(&self, handle: CK_OBJECT_HANDLE) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&handle);
    }

    pub(crate) fn forget_all(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Object {
    /// Whether the object behind is not what it says.
    pub(crate) fn is_masked(&self) -> bool {
        !self.declared.is_empty()
    }

    /// What the object says of itself.
    pub(crate) fn attribute(
        &self,
        session: Session<'_>,
        handle: CK_OBJECT_HANDLE,
        kind: CK_ATTRIBUTE_TYPE,
    ) -> Answer<Vec<u8>> {
        if let Some(declared) = self.declared.get(&kind) {
            return Ok(declared.clone());
        }
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = read.get(&kind) {
            return Ok(known.clone());
        }
        let value = session.attribute(handle, kind)?.to_vec();
        read.insert(kind, value.clone());
        Ok(value)
    }

    pub(crate) fn flag(
        &self,
        session: Session<'_>,
        handle: CK_OBJECT_HANDLE,
        kind: CK_ATTRIBUTE_TYPE,
    ) -> Answer<bool> {
        Ok(self.attribute(session, handle, kind)?.first().is_some_and(|byte| *byte != 0))
    }

    /// Refuses what the key may not do, as SoftHSM does: the use first, the mechanism then.
    pub(crate) fn permit(
        &self,
        session: Session<'_>,
        handle: CK_OBJECT_HANDLE,
        usage: CK_ATTRIBUTE_TYPE,
        mechanism: CK_MECHANISM_TYPE,
    ) -> Answer<()> {
        if !self.flag(session, handle, usage)? {
            return Err(CKR_KEY_FUNCTION_NOT_PERMITTED);
        }
        let allowed = self.allowed(session, handle)?;
        if allowed.is_empty() || allowed.contains(&mechanism) {
            Ok(())
        } else {
            Err(CKR_MECHANISM_INVALID)
        }
    }

    /// CKA_ALLOWED_MECHANISMS; empty where there is no limit.
    pub(crate) fn allowed(
        &self,
        session: Session<'_>,
        handle: CK_OBJECT_HANDLE,
    ) -> Answer<Vec<CK_MECHANISM_TYPE>> {
        Ok(numbers(&self.attribute(session, handle, CKA_ALLOWED_MECHANISMS)?))
    }

    /// C_GetAttributeValue with the declared values in their place.
    pub(crate) fn get_attribute_value(
        &self,
        session: Session<'_>,
        handle: CK_OBJECT_HANDLE,
        asked: &mut [CK_ATTRIBUTE],
    ) -> CK_RV {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for (at, attribute) in asked.iter().enumerate() {
            let is_ours = self.declared.contains_key(&attribute.type_)
                || attribute.type_ == CKA_WRAP_TEMPLATE
                || attribute.type_ == CKA_VALUE && self.declared.contains_key(&CKA_EXTRACTABLE);
            if is_ours { ours.push(at) } else { theirs.push(at) }
        }
        let mut rv = CKR_OK;
        if !theirs.is_empty() || asked.is_empty() {
            let mut passed: Vec<CK_ATTRIBUTE> = theirs.iter().map(|at| asked[*at]).collect();
            let (first, count) = (passed.as_mut_ptr(), passed.len() as CK_ULONG);
            rv = call!(session.target, C_GetAttributeValue(session.handle, handle, first, count));
            for (at, answered) in theirs.iter().zip(passed) {
                asked[*at].ulValueLen = answered.ulValueLen;
            }
        }
        for at in ours {
            let answered = self.answer(&mut asked[at]);
            if rv == CKR_OK {
                rv = answered;
            }
        }
        rv
    }

    fn answer(&self, asked: &mut CK_ATTRIBUTE) -> CK_RV {
        if asked.type_ == CKA_VALUE {
            asked.ulValueLen = UNAVAILABLE;
            return CKR_ATTRIBUTE_SENSITIVE;
        }
        let value = self.declared.get(&asked.type_).map(Vec::as_slice).unwrap_or_default();
        let room = std::mem::replace(&mut asked.ulValueLen, value.len() as CK_ULONG);
        if asked.pValue.is_null() {
            return CKR_OK;
        }
        if room < value.len() as CK_ULONG {
            asked.ulValueLen = UNAVAILABLE;
            return CKR_BUFFER_TOO_SMALL;
        }
        // SAFETY: the application gave a buffer of `room` bytes, which are enough.
        unsafe {
            std::ptr::copy_nonoverlapping(value.as_ptr(), asked.pValue.cast(), value.len());
        }
        CKR_OK
    }

    /// Refuses to change what is hidden, or to copy it into something else.
    pub(crate) fn permit_change(&self, template: &Template<'_>) -> Answer<()> {
        let hidden = self.declared.keys().any(|kind| template.value(*kind).is_some());
        let reserved = template.value(CKA_WRAP_TEMPLATE).is_some();
        if self.is_masked() && (hidden || reserved) { Err(CKR_ATTRIBUTE_READ_ONLY) } else { Ok(()) }
    }
}

/// How a key comes to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Its value comes from outside, or from other keys.
    Given,
    /// It is drawn inside, by this mechanism.
    Generated(CK_MECHANISM_TYPE),
}

/// Widens the template of a new secret key by what the shim needs, and puts what was declared into
/// it. A key that needs nothing keeps its template.
pub(crate) fn disguise(template: &mut Template<'_>, origin: Origin) -> Answer<()> {
    let drawn = match origin {
        Origin::Given => None,
        Origin::Generated(CKM_AES_KEY_GEN) => Some(CKK_AES),
        Origin::Generated(CKM_DES3_KEY_GEN) => Some(CKK_DES3),
        Origin::Generated(_) => None,
    };
    if template.number(CKA_CLASS).is_some_and(|class| class != CKO_SECRET_KEY) {
        return Ok(());
    }
    let cipher: &[CK_MECHANISM_TYPE] = match template.number(CKA_KEY_TYPE).or(drawn) {
        Some(CKK_AES) => &[CKM_AES_ECB, CKM_AES_CBC],
        Some(CKK_DES2 | CKK_DES3) => &[CKM_DES3_ECB, CKM_DES3_CBC],
        _ => &[],
    };
    let is = |template: &Template<'_>, kind| template.flag(kind) == Some(true);
    let allowed = template.value(CKA_ALLOWED_MECHANISMS).map(numbers).unwrap_or_default();
    let any =
        |fits: &dyn Fn(&CK_MECHANISM_TYPE) -> bool| allowed.is_empty() || allowed.iter().any(fits);
    let wraps = is(template, CKA_WRAP) || is(template, CKA_UNWRAP);
    let enciphers =
        wraps && any(&|kind| cipher.contains(kind)) || allowed.contains(&vendor::TRANSLATE_PIN);
    let is_read =
        is(template, CKA_DERIVE) && any(&is_derivation) || allowed.contains(&vendor::RETAIL_MAC);

    let mut declared = Declared::new();
    let mut hide = |template: &mut Template<'_>, kind, said: bool, inside: bool| {
        if template.flag(kind).unwrap_or(inside) == said && said != inside {
            declared.insert(kind, vec![u8::from(said)]);
            template.set(kind, &[u8::from(inside)]);
        }
    };
    if enciphers && !cipher.is_empty() {
        hide(template, CKA_ENCRYPT, false, true);
        hide(template, CKA_DECRYPT, false, true);
    }
    // What the template does not say of these two is false.
    if is_read && template.flag(CKA_EXTRACTABLE) != Some(true) {
        template.set(CKA_EXTRACTABLE, &[0]);
        hide(template, CKA_EXTRACTABLE, false, true);
        let drawn = u8::from(matches!(origin, Origin::Generated(_)));
        declared.insert(CKA_NEVER_EXTRACTABLE, vec![drawn]);
    }
    // Only its officer could make a key TRUSTED, and only such a key could read these objects.
    for kind in [CKA_WRAP_WITH_TRUSTED, CKA_TRUSTED] {
        if is(template, kind) {
            declared.insert(kind, vec![1]);
            template.remove(kind);
        }
    }
    if enciphers && !allowed.is_empty() && !cipher.iter().all(|kind| allowed.contains(kind)) {
        let wider: Vec<u8> =
            cipher.iter().chain(&allowed).flat_map(|kind| kind.to_ne_bytes()).collect();
        let said = allowed.iter().flat_map(|kind| kind.to_ne_bytes()).collect();
        declared.insert(CKA_ALLOWED_MECHANISMS, said);
        template.set(CKA_ALLOWED_MECHANISMS, &wider);
    }
    if declared.is_empty() {
        return Ok(());
    }
    if template.value(CKA_WRAP_TEMPLATE).is_some() {
        return Err(CKR_ATTRIBUTE_TYPE_INVALID);
    }
    template.nest(CKA_WRAP_TEMPLATE, MARK, &pack(&declared));
    Ok(())
}

/// Type, length and value of each, in the machine's own form: a token does not travel.
fn pack(declared: &Declared) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, value) in declared {
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(value.len() as CK_ULONG).to_ne_bytes());
        bytes.extend_from_slice(value);
    }
    bytes
}

fn unpack(mut bytes: &[u8]) -> Declared {
    let mut declared = Declared::new();
    while let Some((head, rest)) = bytes.split_at_checked(2 * size_of::<CK_ULONG>()) {
        let [kind, length] = numbers(head)[..] else { break };
        let Some((value, rest)) = rest.split_at_checked(length as usize) else { break };
        declared.insert(kind, value.to_vec());
        bytes = rest;
    }
    declared
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_declared_is_unpacked_as_it_was_packed() {
        let declared =
            Declared::from([(CKA_ENCRYPT, vec![0]), (CKA_ALLOWED_MECHANISMS, vec![7; 24])]);

        let packed = pack(&declared);

        assert_eq!(unpack(&packed), declared);
        assert_eq!(unpack(&packed[..packed.len() - 1]).len(), 1);
        assert!(unpack(&[]).is_empty());
    }
}
