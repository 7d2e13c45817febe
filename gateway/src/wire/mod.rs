//! Bytes to orders, outcomes to bytes. Nothing here knows a socket, a table or a link.

mod amount; // positive decimals of a currency
pub(crate) mod body; // one JSON body of bounded size
pub(crate) mod breaker_orders; // the operator's word on a breaker
pub(crate) mod key_orders; // the key officers' requests
mod object; // a JSON object, read strictly
pub(crate) mod orders; // the data API's requests
pub mod problem; // refusals

pub use amount::Amount;
