//! The data API: one handler a file. Each reads as the sentence: authenticate, limit, decode,
//! authorise, ask, answer.

mod asked;
mod authorise;
mod deadline;
mod generate_mac;
mod payment;
mod refusal;
mod translate_pin;
mod verify_mac;
mod verify_pin;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};

use crate::guard::Guard;
use crate::links::token::Hsm;
use crate::relay::Relay;
pub use authorise::Authority;

/// What handlers share.
#[derive(Debug, Clone)]
pub struct Gateway {
    /// The token.
    pub hsm: Arc<Hsm>,
    /// The token, for what a client could guess.
    pub guard: Arc<Guard>,
    /// Payments, now or later.
    pub relay: Arc<Relay>,
    /// Who may ask for what.
    pub authority: Arc<Authority>,
    /// The longest that one request may take; a client may ask for less.
    pub request_max: Duration,
}

/// The longest body of most requests.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// A message of 64 KiB in hex, and what is around it.
const MAC_BODY_BYTES_MAX: usize = 160 * 1024;

/// Every path of the data API.
pub fn router(gateway: Gateway) -> axum::Router {
    let large = axum::Router::new()
        .route("/v1/mac/generate", post(generate_mac::generate_mac))
        .route("/v1/mac/verify", post(verify_mac::verify_mac))
        .layer(DefaultBodyLimit::max(MAC_BODY_BYTES_MAX));
    axum::Router::new()
        .route("/v1/pin/translate", post(translate_pin::translate_pin))
        .route("/v1/pin/verify", post(verify_pin::verify_pin))
        .route("/v1/payments", post(payment::make_payment))
        .route("/v1/payments/{id}", get(payment::read_payment))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .merge(large)
        .with_state(gateway)
}

/// The data API as an OpenAPI document.
#[must_use]
pub fn openapi() -> utoipa::openapi::OpenApi {
    use utoipa::OpenApi;
    let mut document = Document::openapi();
    document.info.version = env!("CARGO_PKG_VERSION").into();
    document
}

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Tollgate data API",
        description = "PIN, MAC and payment operations over mutual TLS. Bytes are hex, upper case \
                       out, both cases in. Every refusal is application/problem+json."
    ),
    paths(
        translate_pin::translate_pin,
        verify_pin::verify_pin,
        generate_mac::generate_mac,
        verify_mac::verify_mac,
        payment::make_payment,
        payment::read_payment,
    ),
    components(schemas(crate::wire::problem::ProblemBody))
)]
struct Document;

#[cfg(test)]
mod tests {
    /// The document names every route with its answers, and each refusal in the one form.
    #[test]
    fn the_document_covers_every_route() {
        let document = serde_json::to_value(super::openapi()).unwrap();

        let paths = document["paths"].as_object().unwrap();

        let names: Vec<&String> = paths.keys().collect();
        assert_eq!(
            names,
            [
                "/v1/mac/generate",
                "/v1/mac/verify",
                "/v1/payments",
                "/v1/payments/{id}",
                "/v1/pin/translate",
                "/v1/pin/verify"
            ]
        );
        for (path, methods) in paths {
            for (method, operation) in methods.as_object().unwrap() {
                let answers = operation["responses"].as_object().unwrap();
                assert!(
                    answers.contains_key("403") && answers.contains_key("429"),
                    "{method} {path}"
                );
            }
        }
    }
}
