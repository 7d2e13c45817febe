//! A session object that lives for one operation: destroyed on every way out.

use cryptoki::object::ObjectHandle;

use super::token::TokenSession;

/// Destroyed on drop, on the session that made it.
pub(crate) struct Passing<'s> {
    pub(crate) session: &'s TokenSession,
    pub(crate) object: ObjectHandle,
}

impl Drop for Passing<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.session.session.destroy_object(self.object) {
            tracing::warn!(%error, "destroying a passing object; it dies with its session");
        }
    }
}
