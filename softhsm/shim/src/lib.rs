//! A PKCS#11 module that stands before SoftHSM: it injects faults and does what SoftHSM cannot.
//!
//! **A test artefact, never shipped**: it handles clear PINs and clear keys, and keys that are made
//! through it can do more than they say. No crate of the product depends on it.
//!
//! An application loads `libsofthsm_shim.so` where it would load SoftHSM. `C_GetFunctionList`
//! gives the target's 2.40 list with the entries of `entries` replaced. The environment says:
//!
//! | variable | |
//! |---|---|
//! | `TOLLGATE_SHIM_TARGET` | the module behind, by path |
//! | `TOLLGATE_SHIM_CONTROL` | the control file (`control`); no faults while there is none |
//! | `TOLLGATE_SHIM_COUNTS` | calls are counted in `<this>.<process id>` (`counts`) |
//!
//! Emulated: C_UnwrapKey and C_WrapKey with DES3_ECB, DES3_CBC, AES_ECB, AES_CBC and C_DeriveKey with
//! XOR, CONCATENATE and EXTRACT (`emulate`), where the target refuses the mechanism; and two
//! mechanisms of a vendor (`vendor`). What a key needs inside for that is hidden from its users
//! (`masks`).
#![expect(unsafe_code, reason = "a PKCS#11 module is an FFI border, and this one has two sides")]

mod process; // C_GetFunctionList, and what one process has
mod entries; // the replaced functions
mod control; // what goes wrong, and when
mod counts; // how often each function was called
mod masks; // what a key says of itself, beside what it is inside
mod emulate; // unwrap, wrap, derive
mod vendor; // PIN translation and retail MAC in one call
mod pin; // PIN blocks, as a device decodes them
mod target; // the module behind, in safe calls
mod raw; // pointers of the application: templates, mechanisms, output buffers
