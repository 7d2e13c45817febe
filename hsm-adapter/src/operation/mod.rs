//! One composition of C_ calls a file. Each is a pure function of its input and its keys.

pub(crate) mod check_value;
pub(crate) mod mac;
pub(crate) mod seal;
pub(crate) mod translate;
pub(crate) mod translate_in_token;
pub(crate) mod vendor;
