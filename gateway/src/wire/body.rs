//! A request's body as its handler gets it.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, Request};
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE};

use super::problem::{Problem, Slug};
use crate::edge::BodyRefused;

/// A whole JSON body of bounded size, not yet parsed: its exact bytes count.
pub(crate) struct JsonBody(pub(crate) Bytes);

impl<S: Sync + Send> FromRequest<S> for JsonBody {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let headers = request.headers();
        let is_json = headers.get(CONTENT_TYPE).is_some_and(|value| {
            let text = value.to_str().unwrap_or_default();
            let essence = text.split(';').next().unwrap_or_default().trim();
            essence.eq_ignore_ascii_case("application/json")
        });
        let is_plain = headers.get(CONTENT_ENCODING).is_none_or(|value| value == "identity");
        if !is_json || !is_plain {
            return Err(Problem::new(Slug::UnsupportedMediaType));
        }
        Bytes::from_request(request, state).await.map(Self).map_err(|error| refused(&error))
    }
}

fn refused(error: &BytesRejection) -> Problem {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(refused) = error.downcast_ref::<BodyRefused>() {
            return refused.into();
        }
        cause = error.source();
    }
    Problem::malformed("the body is too long or not complete")
}
