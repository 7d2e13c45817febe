//! Client × operation × key or key pair. What is not granted is refused, and an unknown key looks
//! the same as a forbidden one.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use crate::config::{ClientConfig, Grants};
use crate::relay::biller::Biller;

/// Every client's grants, and the billers. Replaced as a whole when the registry is read again.
#[derive(Debug)]
pub struct Authority {
    grants: RwLock<HashMap<String, Arc<Grants>>>,
    billers: HashMap<String, Arc<Biller>>,
}

impl Authority {
    /// From the registry.
    #[must_use]
    pub fn new(clients: &[ClientConfig], billers: HashMap<String, Arc<Biller>>) -> Self {
        Self { grants: RwLock::new(by_client(clients)), billers }
    }

    /// Takes a registry that was read again.
    pub fn replace(&self, clients: &[ClientConfig]) {
        *self.grants.write().unwrap_or_else(PoisonError::into_inner) = by_client(clients);
    }

    /// What this client may do; nothing when it is not registered.
    #[must_use]
    pub fn grants(&self, client: &str) -> Arc<Grants> {
        let grants = self.grants.read().unwrap_or_else(PoisonError::into_inner);
        grants.get(client).cloned().unwrap_or_default()
    }

    /// A biller that this client may pay.
    #[must_use]
    pub fn biller(&self, grants: &Grants, name: &str) -> Option<Arc<Biller>> {
        let granted = grants.payments.as_ref()?.billers.iter().any(|biller| biller == name);
        self.billers.get(name).filter(|_| granted).cloned()
    }
}

fn by_client(clients: &[ClientConfig]) -> HashMap<String, Arc<Grants>> {
    let entry = |client: &ClientConfig| (client.id.clone(), Arc::new(client.grants.clone()));
    clients.iter().map(entry).collect()
}
