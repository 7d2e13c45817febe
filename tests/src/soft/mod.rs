//! Payment cryptography in plain software: the second opinion.
//!
//! Written from the standards alone, on the RustCrypto crates, sharing nothing with the product's
//! own code, so that an error would have to be made twice to stay hidden. The acquirer and the
//! billing simulator compute with it; every known-answer vector is checked below it. Clear PINs
//! and keys are ordinary values here, because all of them are made up.

mod error;
pub mod cipher; // one block under TDES or AES
pub mod pan; // what a PAN lends to a PIN block
pub mod pin; // ISO 9564-1 formats 0, 1, 3 and 4
pub mod mac; // ISO 9797-1 algorithm 3, CMAC, HMAC
pub mod kcv; // key check values

pub use error::SoftError;
