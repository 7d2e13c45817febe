//! What a token does not know of PKCS#11's attributes, asked once with throw-away session keys.
//!
//! A template that names an attribute which the token does not hold is refused as a whole. Without
//! the attribute the key works, and nothing enforces what the attribute would have: the negative
//! probes (`probes.rs`) tell, and in production somebody must have accepted each by its name.

use cryptoki::error::{Error as CryptokiError, RvError};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use cryptoki_sys::CKA_UNWRAP_TEMPLATE;

use super::attributes::unwrap_template;
use crate::error::TokenError;

/// CKA_UNWRAP_TEMPLATE, for which cryptoki has no name.
pub(crate) const UNWRAP_TEMPLATE: AttributeType = AttributeType::VendorDefined(CKA_UNWRAP_TEMPLATE);

/// What a token lacks. The default is a token that lacks nothing.
#[derive(Debug, Clone, Default)]
pub(crate) struct TokenTraits {
    not_held: Vec<AttributeType>,
    /// C_UnwrapKey makes every object extractable and refuses to be told so.
    extractable_is_fixed: bool,
}

impl TokenTraits {
    /// Asks a token that is logged in.
    ///
    /// # Errors
    /// Any answer to C_CreateObject but yes and ATTRIBUTE_TYPE_INVALID.
    pub(super) fn ask(session: &Session) -> Result<Self, TokenError> {
        let mut found = Self::default();
        for attribute in [
            Attribute::AllowedMechanisms(vec![MechanismType::AES_CBC]),
            Attribute::Copyable(false),
            Attribute::WrapWithTrusted(true),
            unwrap_template(),
        ] {
            let kind = attribute.attribute_type();
            match session.create_object(&key(vec![attribute])) {
                Ok(object) => destroy(session, object),
                Err(CryptokiError::Pkcs11(RvError::AttributeTypeInvalid, _)) => {
                    found.not_held.push(kind);
                }
                Err(error) => return Err(error.into()),
            }
        }
        let object = session.create_object(&found.held(key(Vec::new())))?;
        let secret = [
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::GENERIC_SECRET),
            Attribute::Token(false),
            Attribute::Extractable(true),
        ];
        let unwrapped = session.unwrap_key(&Mechanism::AesCbc([0; 16]), object, &[0; 16], &secret);
        destroy(session, object);
        match unwrapped {
            Ok(object) => destroy(session, object),
            Err(CryptokiError::Pkcs11(RvError::AttributeReadOnly, _)) => {
                found.extractable_is_fixed = true;
            }
            // A token that unwraps nothing is told of by the self-test, where a key asks for it.
            Err(_) => {}
        }
        Ok(found)
    }

    /// Whether the token holds an attribute.
    pub(crate) fn holds(&self, kind: AttributeType) -> bool {
        !self.not_held.contains(&kind)
    }

    /// The part of a template that the token holds.
    pub(crate) fn held(&self, mut template: Vec<Attribute>) -> Vec<Attribute> {
        template.retain(|attribute| self.holds(attribute.attribute_type()));
        template
    }

    /// The part of a template that C_UnwrapKey takes.
    pub(crate) fn unwrapped(&self, template: Vec<Attribute>) -> Vec<Attribute> {
        let mut template = self.held(template);
        if self.extractable_is_fixed {
            template.retain(|attribute| attribute.attribute_type() != AttributeType::Extractable);
        }
        template
    }
}

/// A key of no value to anybody that unwraps, with one attribute more.
fn key(with: Vec<Attribute>) -> Vec<Attribute> {
    let mut template = vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Value(vec![0x5A; 16]),
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Unwrap(true),
    ];
    template.extend(with);
    template
}

fn destroy(session: &Session, object: ObjectHandle) {
    if let Err(error) = session.destroy_object(object) {
        tracing::warn!(%error, "destroying a throw-away key; it dies with its session");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_cut_to_what_the_token_takes() {
        let template = || {
            vec![
                Attribute::Extractable(true),
                Attribute::Copyable(false),
                unwrap_template(),
                Attribute::Wrap(true),
            ]
        };
        let whole = TokenTraits::default();
        let not_held = vec![AttributeType::Copyable, UNWRAP_TEMPLATE];
        let poor = TokenTraits { not_held, extractable_is_fixed: true };

        assert_eq!(whole.unwrapped(template()), template());
        assert_eq!(poor.held(template()), [Attribute::Extractable(true), Attribute::Wrap(true)]);
        assert_eq!(poor.unwrapped(template()), [Attribute::Wrap(true)]);
        assert!(whole.holds(AttributeType::Copyable) && !poor.holds(UNWRAP_TEMPLATE));
    }
}
