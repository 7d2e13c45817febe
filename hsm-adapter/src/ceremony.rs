//! Making tokens and keys: what a key ceremony does by hand, for disposable tokens.
//!
//! The worker never reaches this module. `danger_import_clear_key` exists for demo and CI only: a
//! production token makes its keys itself or takes them in key blocks.

use std::path::Path;

use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, KeyType, ObjectClass};
use cryptoki::session::UserType;
use cryptoki::types::AuthPin;
use secrecy::SecretString;

use crate::error::TokenError;
use crate::operation::check_value::{self, CheckValues};
use crate::register::{KeyAlgorithm, KeyProfile};
use crate::vocabulary::{Kcv, KcvMethod, SignatureAlgorithm};
use crate::worker::OpenError;
use crate::worker::attributes::{Part, class, creation_template, template};
use crate::worker::keys::LoadedKey;
use crate::worker::token::{NotOne, Token, TokenSession, initialise};

/// Makes a token with this label in the first slot that holds none. Only for a module that makes a
/// new empty slot for each token, as SoftHSM does.
///
/// # Errors
/// The module's, or that it has no free slot.
pub fn init_token(
    module: &Path,
    label: &str,
    so_pin: &SecretString,
    user_pin: &SecretString,
) -> Result<(), CeremonyError> {
    let context = initialise(module)?;
    let mut free = None;
    for slot in context.get_slots_with_token().map_err(TokenError::from)? {
        let info = context.get_token_info(slot).map_err(TokenError::from)?;
        if !info.token_initialized() {
            free = Some(slot);
        }
    }
    let slot = free.ok_or(CeremonyError::NoFreeSlot)?;
    let so_pin = pin(so_pin);
    context.init_token(slot, &so_pin, label).map_err(TokenError::from)?;
    let session = context.open_rw_session(slot).map_err(TokenError::from)?;
    session.login(UserType::So, Some(&so_pin)).map_err(TokenError::from)?;
    session.init_pin(&pin(user_pin)).map_err(TokenError::from)?;
    drop(session);
    context.finalize().map_err(TokenError::from)?;
    Ok(())
}

fn pin(secret: &SecretString) -> AuthPin {
    use secrecy::ExposeSecret;
    AuthPin::new(secret.expose_secret().into())
}

/// A logged-in session for making keys.
pub struct Ceremony {
    session: TokenSession,
    _token: Token,
}

impl std::fmt::Debug for Ceremony {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ceremony")
    }
}

impl Ceremony {
    /// # Errors
    /// When the token is not there or the PIN is wrong.
    pub fn open(
        module: &Path,
        label: &str,
        user_pin: &SecretString,
    ) -> Result<Self, CeremonyError> {
        let token = Token::open(module, label, pin(user_pin))?;
        Ok(Self { session: token.session()?, _token: token })
    }

    /// Whether all objects of the key are there.
    ///
    /// # Errors
    /// When the token fails, or holds several objects of one label.
    pub fn exists(&self, profile: &KeyProfile) -> Result<bool, CeremonyError> {
        let labels = [Some(profile.object_label()), profile.left_object_label()];
        for label in labels.into_iter().flatten() {
            match self.session.find(profile, &label)? {
                Ok(_) => {}
                Err(NotOne::None) => return Ok(false),
                Err(NotOne::Several) => return Err(CeremonyError::NotOne { label }),
            }
        }
        Ok(true)
    }

    /// The check value of a key that is there, where its role lets the token compute it.
    ///
    /// # Errors
    /// When the key is not there or the token refuses.
    pub fn check_value_on_token(&self, profile: &KeyProfile) -> Result<Option<Kcv>, CeremonyError> {
        let find = |label: String| {
            let found = self.session.find(profile, &label)?;
            found.map_err(|_| CeremonyError::NotOne { label })
        };
        let object = find(profile.object_label())?;
        let left = profile.left_object_label().map(find).transpose()?;
        let key = LoadedKey { profile: profile.clone(), object, left };
        let (kcv, from_token) = check_value::of(&self.session, &key)?;
        Ok(kcv.filter(|_| from_token))
    }

    /// Puts a clear key on the token under its role's attribute set: both objects of a retail MAC
    /// key or neither. For disposable tokens only.
    ///
    /// # Errors
    /// When the token refuses; then no object of the key is left.
    pub fn danger_import_clear_key(
        &self,
        profile: &KeyProfile,
        value: &[u8],
    ) -> Result<(), CeremonyError> {
        let parts = [
            (Part::Whole, Some(profile.object_label())),
            (Part::Left, profile.left_object_label()),
        ];
        let mut made = Vec::new();
        for (part, label) in parts {
            let Some(label) = label else { continue };
            let mut template = creation_template(profile, part, value, true);
            template.push(Attribute::Label(label.into()));
            template.push(Attribute::Id(profile.object_label().into()));
            match self.session.create_secret(template) {
                Ok(object) => made.push(object),
                Err(error) => {
                    for object in made {
                        self.session.session.destroy_object(object).map_err(TokenError::from)?;
                    }
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    /// Makes the key inside the token: AES-256, or a pair on P-256 or Ed25519, under its role's
    /// attribute set.
    ///
    /// # Errors
    /// When the token refuses.
    pub fn generate(&self, profile: &KeyProfile) -> Result<(), CeremonyError> {
        let label = Attribute::Label(profile.object_label().into());
        let id = Attribute::Id(profile.object_label().into());
        let mut private = template(profile, Part::Whole);
        private.extend([label.clone(), id.clone()]);
        if let Some(algorithm) = profile.algorithm.signature() {
            let (mechanism, curve) = match algorithm {
                SignatureAlgorithm::EcdsaP256Sha256 => (Mechanism::EccKeyPairGen, &P256_OID[..]),
                SignatureAlgorithm::Ed25519 => (Mechanism::EccEdwardsKeyPairGen, &ED25519[..]),
            };
            let public = [
                Attribute::Token(true),
                Attribute::Private(false),
                Attribute::Verify(true),
                Attribute::EcParams(curve.to_vec()),
                label,
                id,
            ];
            let private = self.session.traits.held(private);
            self.session
                .session
                .generate_key_pair(&mechanism, &public, &private)
                .map_err(TokenError::from)?;
        } else {
            private.extend([
                Attribute::Class(ObjectClass::SECRET_KEY),
                Attribute::KeyType(KeyType::AES),
                Attribute::ValueLen(32.into()),
            ]);
            self.session.generate_aes(private)?;
        }
        Ok(())
    }

    /// Destroys every object of the key that is there: none is no error, several are all destroyed.
    ///
    /// # Errors
    /// When the token refuses.
    pub fn destroy(&self, profile: &KeyProfile) -> Result<(), CeremonyError> {
        let session = &self.session.session;
        let labels = [Some(profile.object_label()), profile.left_object_label()];
        for label in labels.into_iter().flatten() {
            let public = profile.algorithm.is_pair().then_some(ObjectClass::PUBLIC_KEY);
            for class in [Some(class(profile)), public].into_iter().flatten() {
                let template = [Attribute::Class(class), Attribute::Label(label.clone().into())];
                for object in session.find_objects(&template).map_err(TokenError::from)? {
                    session.destroy_object(object).map_err(TokenError::from)?;
                }
            }
        }
        Ok(())
    }

    /// The check value of a clear key, computed by the token on a passing copy.
    ///
    /// # Errors
    /// When the token refuses, or the key has no such check value.
    pub fn check_value(
        &self,
        algorithm: KeyAlgorithm,
        method: KcvMethod,
        value: &[u8],
    ) -> Result<Kcv, CeremonyError> {
        let values = CheckValues::of(&self.session, algorithm, value)?;
        values.kcv(method).ok_or(CeremonyError::NoCheckValue)
    }
}

/// 1.2.840.10045.3.1.7, DER.
const P256_OID: [u8; 10] = [0x06, 0x08, 0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x03, 0x01, 0x07];

/// 1.3.101.112 (RFC 8410), DER.
const ED25519: [u8; 5] = [0x06, 0x03, 0x2B, 0x65, 0x70];

/// Why a token or key was not made.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each error text is the documentation")]
pub enum CeremonyError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("the module has no slot without a token")]
    NoFreeSlot,
    #[error("one object labelled {label:?} is wanted on the token, not none and not several")]
    NotOne { label: String },
    #[error("this kind of key has no check value")]
    NoCheckValue,
}
