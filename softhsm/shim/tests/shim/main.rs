//! The shim as an application sees it: through cryptoki, on a SoftHSM token of its own.
#![cfg(test)]
#![expect(unsafe_code, reason = "cryptoki has no names for mechanisms that the shim emulates")]

mod bench; // a token and a process for each test
mod emulation;
mod faults;
mod masking;
mod vendor;
