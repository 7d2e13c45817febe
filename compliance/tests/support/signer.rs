//! Signs checkpoints as the HSM does, with a key of its own.

#![allow(unreachable_pub, reason = "shared by unit and integration tests")]

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
};
use compliance::{Checkpoint, SignatureType, SignedNote, VerifierKey};

pub struct Signer {
    name: String,
    pair: Pair,
}

enum Pair {
    Ed25519(Ed25519KeyPair),
    Ecdsa(EcdsaKeyPair),
}

impl Signer {
    pub fn ed25519(name: &str) -> Self {
        Self { name: name.into(), pair: Pair::Ed25519(Ed25519KeyPair::generate().unwrap()) }
    }

    pub fn ecdsa(name: &str) -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
        Self { name: name.into(), pair: Pair::Ecdsa(pair) }
    }

    pub fn key(&self) -> VerifierKey {
        match &self.pair {
            Pair::Ed25519(pair) => {
                let key = pair.public_key().as_ref().to_vec();
                VerifierKey::new(&self.name, SignatureType::Ed25519, key).unwrap()
            }
            Pair::Ecdsa(pair) => {
                let point = pair.public_key().as_ref();
                let prefix =
                    hex::decode("3059301306072a8648ce3d020106082a8648ce3d030107034200").unwrap();
                let key = [prefix.as_slice(), point].concat();
                VerifierKey::new(&self.name, SignatureType::EcdsaP256, key).unwrap()
            }
        }
    }

    pub fn sign(&self, checkpoint: Checkpoint) -> SignedNote {
        self.sign_too(SignedNote::unsigned(checkpoint))
    }

    /// Adds this key's signature.
    pub fn sign_too(&self, note: SignedNote) -> SignedNote {
        let text = note.checkpoint().text();
        let signature = match &self.pair {
            Pair::Ed25519(pair) => pair.sign(text.as_bytes()).as_ref().to_vec(),
            Pair::Ecdsa(pair) => {
                pair.sign(&SystemRandom::new(), text.as_bytes()).unwrap().as_ref().to_vec()
            }
        };
        note.signed(&self.key(), signature)
    }
}
