//! Bytes to orders, outcomes to bytes. Nothing here knows a socket, a table or a link.

mod amount; // positive decimals of a currency
mod object; // a JSON object, read strictly
pub(crate) mod orders; // the data API's requests
pub mod problem; // refusals

pub use amount::Amount;
