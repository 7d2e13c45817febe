//! Session objects that live for one operation: destroyed on every way out.

use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::misc::KeyDerivationStringData;
use cryptoki::mechanism::vendor_defined::VendorDefinedMechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki_sys::{CK_ULONG, CKM_AES_ECB_ENCRYPT_DATA};

use super::attributes::{Part, creation_template, template};
use super::keys::LoadedKey;
use super::raw::mechanism_type;
use super::token::TokenSession;
use crate::error::TokenError;
use crate::register::KeyProfile;

/// Destroyed on drop, on the session that made it.
pub(crate) struct Passing<'s> {
    pub(crate) session: &'s TokenSession,
    pub(crate) object: ObjectHandle,
}

impl Drop for Passing<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.session.session.destroy_object(self.object) {
            tracing::warn!(%error, "destroying a passing object; it dies with its session");
        }
    }
}

/// A key of which every object is a session object, under the attribute set that a key of its
/// profile has on the token.
pub(crate) struct PassingKey<'s> {
    pub(crate) key: LoadedKey,
    /// Keeps them alive.
    _objects: [Option<Passing<'s>>; 2],
}

impl<'s> PassingKey<'s> {
    /// From a clear value: both objects of a key that has two, or none.
    pub(crate) fn create(
        session: &'s TokenSession,
        profile: KeyProfile,
        value: &[u8],
    ) -> Result<Self, TokenError> {
        let whole = create(session, &profile, Part::Whole, value)?;
        let left = match profile.left_object_label() {
            Some(_) => Some(create(session, &profile, Part::Left, value)?),
            None => None,
        };
        Ok(Self::of(profile, whole, left))
    }

    /// Of objects that are there.
    pub(crate) fn of(profile: KeyProfile, whole: Passing<'s>, left: Option<Passing<'s>>) -> Self {
        let object = whole.object;
        let key = LoadedKey { profile, object, left: left.as_ref().map(|left| left.object) };
        Self { key, _objects: [Some(whole), left] }
    }
}

/// One session object of a key.
pub(crate) fn create<'s>(
    session: &'s TokenSession,
    profile: &KeyProfile,
    part: Part,
    value: &[u8],
) -> Result<Passing<'s>, TokenError> {
    let object = session.create_secret(creation_template(profile, part, value, false))?;
    Ok(Passing { session, object })
}

/// An AES key of `bytes` bytes, derived in the token: the encipherment of `data` under `base`
/// (CKM_AES_ECB_ENCRYPT_DATA), cut on the right.
pub(crate) fn derive<'s>(
    session: &'s TokenSession,
    base: ObjectHandle,
    profile: &KeyProfile,
    bytes: usize,
    data: &[u8],
) -> Result<Passing<'s>, TokenError> {
    let mut wanted = template(profile, Part::Whole);
    wanted[0] = Attribute::Token(false);
    wanted.extend([
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::ValueLen((bytes as CK_ULONG).into()),
    ]);
    // SoftHSM takes attributes in their order, and after this one no other of a derived key.
    wanted.sort_by_key(|attribute| attribute.attribute_type() == AttributeType::Modifiable);
    derive_as(session, base, &wanted, data)
}

/// Whatever the template says, derived in the token: the encipherment of `data` under `base`.
pub(crate) fn derive_as<'s>(
    session: &'s TokenSession,
    base: ObjectHandle,
    template: &[Attribute],
    data: &[u8],
) -> Result<Passing<'s>, TokenError> {
    let parameter = KeyDerivationStringData::new(data);
    let number = mechanism_type(CKM_AES_ECB_ENCRYPT_DATA);
    let mechanism = Mechanism::VendorDefined(VendorDefinedMechanism::new(number, Some(&parameter)));
    let template = session.traits.held(template.to_vec());
    let object = session.session.derive_key(&mechanism, base, &template)?;
    Ok(Passing { session, object })
}
