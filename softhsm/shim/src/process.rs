//! What one process has of the shim, and the door to it: C_GetFunctionList.

use std::env;
use std::path::PathBuf;
use std::sync::OnceLock;

use cryptoki_sys::{
    CK_FUNCTION_LIST, CK_OBJECT_HANDLE, CK_RV, CK_SESSION_HANDLE, CK_ULONG, CKR_ARGUMENTS_BAD,
    CKR_GENERAL_ERROR, CKR_OK,
};

use crate::control::{Control, Fate};
use crate::counts::Counts;
use crate::entries::{NAMES, replace};
use crate::masks::Objects;
use crate::raw::Mechanism;
use crate::target::{Session, Target};
use crate::vendor::Operations;

/// Everything that one process has of the shim.
pub(crate) struct Shim {
    pub(crate) target: Target,
    list: CK_FUNCTION_LIST,
    control: Control,
    counts: Option<Counts>,
    pub(crate) objects: Objects,
    pub(crate) operations: Operations,
}

impl Shim {
    fn load() -> Result<Self, String> {
        let path = |name: &str| env::var_os(name).map(PathBuf::from);
        let module = path("TOLLGATE_SHIM_TARGET").ok_or("TOLLGATE_SHIM_TARGET names no module")?;
        let target = Target::load(&module).map_err(|why| format!("{}: {why}", module.display()))?;
        let mut list = target.list;
        list.C_GetFunctionList = Some(C_GetFunctionList);
        replace(&mut list);
        let counts = match path("TOLLGATE_SHIM_COUNTS") {
            None => None,
            Some(path) => Some(
                Counts::create(&path, NAMES)
                    .map_err(|error| format!("{}: {error}", path.display()))?,
            ),
        };
        Ok(Self {
            target,
            list,
            control: Control::new(path("TOLLGATE_SHIM_CONTROL")),
            counts,
            objects: Objects::default(),
            operations: Operations::default(),
        })
    }

    /// Counts a call of the entry with this number, and lets it suffer.
    pub(crate) fn begin(&self, at: usize) -> Fate {
        if let Some(counts) = &self.counts {
            counts.count(at);
        }
        self.control.suffer(NAMES[at])
    }

    pub(crate) fn session(&self, handle: CK_SESSION_HANDLE) -> Session<'_> {
        Session { target: &self.target, handle }
    }

    pub(crate) fn forget_all(&self) {
        self.objects.forget_all();
        self.operations.forget_all();
    }

    /// Refuses a use that a masked key did not declare. `None` lets the target decide.
    pub(crate) fn refusal(
        &self,
        session: Session<'_>,
        mechanism: &Mechanism<'_>,
        key: CK_OBJECT_HANDLE,
        usage: CK_ULONG,
    ) -> Option<CK_RV> {
        let object = self.objects.of(session, key);
        if !object.is_masked() {
            return None;
        }
        object.permit(session, key, usage, mechanism.kind).err()
    }
}

/// The shim of this process; `None`, with a word on standard error, when it has no target.
pub(crate) fn shim() -> Option<&'static Shim> {
    static SHIM: OnceLock<Option<Shim>> = OnceLock::new();
    let load = || Shim::load().map_err(|why| eprintln!("softhsm-shim: {why}")).ok();
    SHIM.get_or_init(load).as_ref()
}

/// The target's function list with our entries.
///
/// # Safety
/// PKCS#11's contract: `list` is null or a place for one pointer.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn C_GetFunctionList(list: *mut *mut CK_FUNCTION_LIST) -> CK_RV {
    let Some(shim) = shim() else { return CKR_GENERAL_ERROR };
    if list.is_null() {
        return CKR_ARGUMENTS_BAD;
    }
    // SAFETY: not null, so by the contract a place for one pointer. Applications read the list.
    unsafe { *list = std::ptr::from_ref(&shim.list).cast_mut() };
    CKR_OK
}
