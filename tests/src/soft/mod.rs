//! Payment cryptography in plain software: the second opinion.
//!
//! Written from the standards alone, on the RustCrypto crates, sharing nothing with the product's
//! own code, so that an error would have to be made twice to stay hidden. The acquirer and the
//! billing simulator compute with it; every known-answer vector is checked below it. Clear PINs
//! and keys are ordinary values here, because all of them are made up.

mod error;
pub mod cipher; // one block under TDES or AES
pub mod chain; // many blocks, each mixed with the one before
pub mod pan; // what a PAN lends to a PIN block
pub mod pin; // ISO 9564-1 formats 0, 1, 3 and 4
pub mod mac; // ISO 9797-1 algorithms 1 and 3, CMAC, HMAC
pub mod kcv; // key check values
pub mod dukpt_tdes; // a key a transaction, X9.24-1
pub mod dukpt_aes; // the same under AES, X9.24-3
pub mod pvv; // what Visa prints for a PIN
pub mod ibm3624; // what IBM adds to a natural PIN
pub mod tr31; // keys in transport, X9.143
pub mod random; // cases nobody thought of, from a seed

pub use error::SoftError;
