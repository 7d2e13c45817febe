//! Audit checkpoints, signed in the token: ECDSA P-256 over SHA-256, or Ed25519.
//!
//! Only a text in the form of a checkpoint is signed: whoever holds the socket can have nothing else
//! signed. What the token answers is verified before it leaves, with the public key that leaves
//! beside it: a public object that anybody put in the right one's place is noticed here.

mod forms;
mod text;

use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::eddsa::{EddsaParams, EddsaSignatureScheme};
use cryptoki::object::{Attribute, AttributeType, ObjectClass, ObjectHandle};
use sha2::{Digest, Sha256};

pub(crate) use self::text::CheckpointText;
use crate::error::{CkrClass, Failure, TokenError};
use crate::protocol::Recipe;
use crate::register::KeyProfile;
use crate::vocabulary::{Mode, SignatureAlgorithm};
use crate::worker::keys::LoadedKey;
use crate::worker::token::TokenSession;

/// A signature with what it is verified by.
pub(crate) struct Signed {
    pub(crate) signature: Vec<u8>,
    pub(crate) public_key: Vec<u8>,
    pub(crate) algorithm: SignatureAlgorithm,
}

/// Signs, and verifies on the token what it has signed. A key whose public one is not there, or is
/// another's, is `KeyNotForThis`: it is no fault of the link.
pub(crate) fn sign(
    session: &TokenSession,
    key: &LoadedKey,
    text: CheckpointText<'_>,
) -> Result<Signed, Failure> {
    let profile = &key.profile;
    let Some(algorithm) = profile.algorithm.signature() else {
        return Err(Failure::KeyNotForThis(format!("{} signs nothing", profile.name())));
    };
    let hash;
    let (mechanism, data) = match algorithm {
        SignatureAlgorithm::EcdsaP256Sha256 => {
            hash = Sha256::digest(text.bytes());
            (Mechanism::Ecdsa, hash.as_slice())
        }
        SignatureAlgorithm::Ed25519 => {
            let pure = EddsaParams::new(EddsaSignatureScheme::Ed25519);
            (Mechanism::Eddsa(pure), text.bytes())
        }
    };
    // Before the public key is looked for: a token that has vanished finds nothing, and says so here.
    let raw = session.sign(&mechanism, key.object, data)?;
    let raw: [u8; 64] = raw.try_into().map_err(|raw: Vec<u8>| Failure::Token {
        function: "Sign".into(),
        code: format!("a signature of {} bytes where 64 are right", raw.len()),
        class: CkrClass::Restart,
    })?;
    let (object, point) = public(session, profile, key.object)?;
    if let Err(error) = session.session.verify(&mechanism, object, data, &raw) {
        let error = TokenError::from(error);
        return Err(match error.class() {
            CkrClass::Answer | CkrClass::Configuration | CkrClass::Caller => {
                not_its_own(profile, &format!("the public key beside it is another key's: {error}"))
            }
            CkrClass::Transient
            | CkrClass::Refind
            | CkrClass::Relogin
            | CkrClass::Restart
            | CkrClass::Permanent
            | CkrClass::Benign => error.into(),
        });
    }
    let wrong = || not_its_own(profile, "the public key beside it is no point of its curve's form");
    let (signature, public_key) = match algorithm {
        SignatureAlgorithm::EcdsaP256Sha256 => {
            (forms::ecdsa_der(&raw), forms::p256_key_info(&point).ok_or_else(wrong)?)
        }
        SignatureAlgorithm::Ed25519 => {
            (raw.to_vec(), forms::ed25519_key(&point).ok_or_else(wrong)?.to_vec())
        }
    };
    Ok(Signed { signature, public_key, algorithm })
}

/// Signs a text that is nobody's checkpoint, which proves the key and its public one.
pub(crate) fn prove(session: &TokenSession, key: &LoadedKey) -> Result<Recipe, Failure> {
    let signed = sign(session, key, CheckpointText::parse(SELF_TEST.as_bytes())?)?;
    let (name, mechanism) = match signed.algorithm {
        SignatureAlgorithm::EcdsaP256Sha256 => ("ECDSA", "ECDSA"),
        SignatureAlgorithm::Ed25519 => ("Ed25519", "EDDSA"),
    };
    Ok(Recipe {
        operation: format!("sign checkpoint {name}"),
        mode: Mode::InToken,
        calls: format!("sign {mechanism}, verify {mechanism}"),
    })
}

/// An origin that no log has, and the root of an empty tree.
const SELF_TEST: &str =
    "self-test.tollgate.invalid\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n";

/// The public key beside a private one, and its CKA_EC_POINT: the one object with the label, or else
/// the one with the CKA_ID.
fn public(
    session: &TokenSession,
    profile: &KeyProfile,
    private: ObjectHandle,
) -> Result<(ObjectHandle, Vec<u8>), Failure> {
    let TokenSession { session, .. } = session;
    let attribute = |object, kind| -> Result<Option<Attribute>, TokenError> {
        Ok(session.get_attributes(object, &[kind])?.pop())
    };
    let one = |with: Attribute| -> Result<Option<ObjectHandle>, TokenError> {
        let template = [Attribute::Class(ObjectClass::PUBLIC_KEY), with];
        let found = session.find_objects(&template)?;
        Ok(if let [one] = found.as_slice() { Some(*one) } else { None })
    };
    let mut object = one(Attribute::Label(profile.object_label().into()))?;
    if object.is_none()
        && let Some(Attribute::Id(id)) = attribute(private, AttributeType::Id)?
        && !id.is_empty()
    {
        object = one(Attribute::Id(id))?;
    }
    let Some(object) = object else {
        return Err(not_its_own(profile, "one public key is wanted with its label or its CKA_ID"));
    };
    match attribute(object, AttributeType::EcPoint)? {
        Some(Attribute::EcPoint(point)) => Ok((object, point)),
        _ => Err(not_its_own(profile, "the public key beside it tells no CKA_EC_POINT")),
    }
}

fn not_its_own(profile: &KeyProfile, why: &str) -> Failure {
    Failure::KeyNotForThis(format!("{}: {why}", profile.name()))
}
