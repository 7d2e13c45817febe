//! One composition of C_ calls a file. Each is a pure function of its input and its keys.

pub(crate) mod check_value;
pub(crate) mod checkpoint;
pub(crate) mod derive;
pub(crate) mod key_block;
pub(crate) mod dukpt;
pub(crate) mod mac;
pub(crate) mod seal;
pub(crate) mod side;
pub(crate) mod translate;
pub(crate) mod translate_in_token;
pub(crate) mod vendor;
pub(crate) mod verify_pin;
