//! The module behind, in calls that take slices and give owned bytes.

use std::path::Path;
use std::ptr;

use cryptoki_sys::{
    CK_ATTRIBUTE, CK_ATTRIBUTE_TYPE, CK_FUNCTION_LIST, CK_MECHANISM, CK_OBJECT_HANDLE, CK_RV,
    CK_SESSION_HANDLE, CK_ULONG, CKA_EXTRACTABLE, CKA_SENSITIVE, CKA_TOKEN, CKR_OK,
};
use zeroize::Zeroizing;

use crate::raw::{Mechanism, Template, UNAVAILABLE};

/// A return code, where it is not CKR_OK.
pub(crate) type Answer<T> = Result<T, CK_RV>;

/// Calls the target's function of this name.
macro_rules! call {
    ($target:expr, $name:ident ( $($argument:expr),* $(,)? )) => {
        match $target.list.$name {
            // SAFETY: every argument is the application's own, passed on under the contract under
            // which it came, or made from slices, templates and locals that outlive the call.
            Some(function) => unsafe { function($($argument),*) },
            None => cryptoki_sys::CKR_FUNCTION_NOT_SUPPORTED,
        }
    };
}
pub(crate) use call;

/// The target's functions. It is never unloaded.
pub(crate) struct Target {
    pub(crate) list: CK_FUNCTION_LIST,
}

/// One session of the target.
#[derive(Clone, Copy)]
pub(crate) struct Session<'t> {
    pub(crate) target: &'t Target,
    pub(crate) handle: CK_SESSION_HANDLE,
}

impl Target {
    pub(crate) fn load(path: &Path) -> Result<Self, String> {
        // SAFETY: loading runs the module's constructors; that it is a PKCS#11 module is the word of
        // whoever wrote the environment, as it is for every application.
        let library =
            unsafe { cryptoki_sys::Pkcs11::new(path) }.map_err(|error| error.to_string())?;
        let mut list: *mut CK_FUNCTION_LIST = ptr::null_mut();
        // SAFETY: `list` is a place for one pointer, which is all that the call writes.
        let rv = unsafe { library.C_GetFunctionList(&mut list) };
        std::mem::forget(library);
        if rv != CKR_OK || list.is_null() {
            return Err(format!("C_GetFunctionList answered {rv:#x}"));
        }
        // SAFETY: the module answered CKR_OK, so that `list` names its function list; it stays
        // loaded.
        Ok(Self { list: unsafe { *list } })
    }
}

fn ok(rv: CK_RV) -> Answer<()> {
    if rv == CKR_OK { Ok(()) } else { Err(rv) }
}

impl Session<'_> {
    /// One value of an object.
    pub(crate) fn attribute(
        &self,
        object: CK_OBJECT_HANDLE,
        kind: CK_ATTRIBUTE_TYPE,
    ) -> Answer<Zeroizing<Vec<u8>>> {
        let mut asked = CK_ATTRIBUTE { type_: kind, pValue: ptr::null_mut(), ulValueLen: 0 };
        let mut value = Zeroizing::new(Vec::new());
        ok(call!(self.target, C_GetAttributeValue(self.handle, object, &mut asked, 1)))?;
        if asked.ulValueLen != UNAVAILABLE && asked.ulValueLen > 0 {
            value.resize(asked.ulValueLen as usize, 0);
            asked.pValue = value.as_mut_ptr().cast();
            ok(call!(self.target, C_GetAttributeValue(self.handle, object, &mut asked, 1)))?;
        }
        Ok(value)
    }

    /// The attributes of a template that is a value, such as CKA_UNWRAP_TEMPLATE.
    pub(crate) fn template(
        &self,
        object: CK_OBJECT_HANDLE,
        kind: CK_ATTRIBUTE_TYPE,
    ) -> Answer<Vec<(CK_ATTRIBUTE_TYPE, Vec<u8>)>> {
        let mut asked = CK_ATTRIBUTE { type_: kind, pValue: ptr::null_mut(), ulValueLen: 0 };
        ok(call!(self.target, C_GetAttributeValue(self.handle, object, &mut asked, 1)))?;
        if asked.ulValueLen == UNAVAILABLE || asked.ulValueLen == 0 {
            return Ok(Vec::new());
        }
        let count = asked.ulValueLen as usize / size_of::<CK_ATTRIBUTE>();
        let empty = CK_ATTRIBUTE { type_: 0, pValue: ptr::null_mut(), ulValueLen: 0 };
        let mut inner = vec![empty; count];
        asked.pValue = inner.as_mut_ptr().cast();
        // First the lengths, then the values.
        ok(call!(self.target, C_GetAttributeValue(self.handle, object, &mut asked, 1)))?;
        let mut values: Vec<Vec<u8>> =
            inner.iter().map(|one| vec![0; one.ulValueLen as usize]).collect();
        for (one, value) in inner.iter_mut().zip(&mut values) {
            one.pValue = value.as_mut_ptr().cast();
        }
        ok(call!(self.target, C_GetAttributeValue(self.handle, object, &mut asked, 1)))?;
        Ok(inner.iter().map(|one| one.type_).zip(values).collect())
    }

    pub(crate) fn create(&self, template: &mut Template<'_>) -> Answer<CK_OBJECT_HANDLE> {
        let mut object = 0;
        let (first, count) = template.raw();
        ok(call!(self.target, C_CreateObject(self.handle, first, count, &mut object)))?;
        Ok(object)
    }

    pub(crate) fn generate(
        &self,
        mechanism: &Mechanism<'_>,
        template: &mut Template<'_>,
    ) -> Answer<CK_OBJECT_HANDLE> {
        let mut object = 0;
        let mut mechanism = mechanism.raw();
        let (first, count) = template.raw();
        let rv = call!(
            self.target,
            C_GenerateKey(self.handle, &mut mechanism, first, count, &mut object)
        );
        ok(rv)?;
        Ok(object)
    }

    pub(crate) fn derive(
        &self,
        mechanism: &Mechanism<'_>,
        base: CK_OBJECT_HANDLE,
        template: &mut Template<'_>,
    ) -> Answer<CK_OBJECT_HANDLE> {
        let mut object = 0;
        let mut mechanism = mechanism.raw();
        let (first, count) = template.raw();
        let rv = call!(
            self.target,
            C_DeriveKey(self.handle, &mut mechanism, base, first, count, &mut object)
        );
        ok(rv)?;
        Ok(object)
    }

    pub(crate) fn unwrap(
        &self,
        mechanism: &Mechanism<'_>,
        key: CK_OBJECT_HANDLE,
        wrapped: &[u8],
        template: &mut Template<'_>,
    ) -> Answer<CK_OBJECT_HANDLE> {
        let mut object = 0;
        let mut mechanism = mechanism.raw();
        let (first, count) = template.raw();
        let length = wrapped.len() as CK_ULONG;
        let rv = call!(
            self.target,
            C_UnwrapKey(
                self.handle,
                &mut mechanism,
                key,
                wrapped.as_ptr().cast_mut(),
                length,
                first,
                count,
                &mut object,
            )
        );
        ok(rv)?;
        Ok(object)
    }

    /// A key under another; for values of up to 128 bytes.
    pub(crate) fn wrap(
        &self,
        mechanism: &Mechanism<'_>,
        wrapping: CK_OBJECT_HANDLE,
        key: CK_OBJECT_HANDLE,
    ) -> Answer<Vec<u8>> {
        let mut mechanism = mechanism.raw();
        let mut wrapped = vec![0; 256];
        let mut length = wrapped.len() as CK_ULONG;
        let rv = call!(
            self.target,
            C_WrapKey(
                self.handle,
                &mut mechanism,
                wrapping,
                key,
                wrapped.as_mut_ptr(),
                &mut length,
            )
        );
        ok(rv)?;
        wrapped.truncate(length as usize);
        Ok(wrapped)
    }

    /// Without padding: as many bytes as `data` has.
    pub(crate) fn encrypt(
        &self,
        mechanism: &Mechanism<'_>,
        key: CK_OBJECT_HANDLE,
        data: &[u8],
    ) -> Answer<Zeroizing<Vec<u8>>> {
        let mut mechanism = mechanism.raw();
        ok(call!(self.target, C_EncryptInit(self.handle, &mut mechanism, key)))?;
        let (mut answer, mut length) = room(data);
        let (input, count) = (data.as_ptr().cast_mut(), data.len() as CK_ULONG);
        let rv = call!(
            self.target,
            C_Encrypt(self.handle, input, count, answer.as_mut_ptr(), &mut length)
        );
        ok(rv)?;
        answer.truncate(length as usize);
        Ok(answer)
    }

    /// Without padding: as many bytes as `data` has.
    pub(crate) fn decrypt(
        &self,
        mechanism: &Mechanism<'_>,
        key: CK_OBJECT_HANDLE,
        data: &[u8],
    ) -> Answer<Zeroizing<Vec<u8>>> {
        let mut mechanism: CK_MECHANISM = mechanism.raw();
        ok(call!(self.target, C_DecryptInit(self.handle, &mut mechanism, key)))?;
        let (mut answer, mut length) = room(data);
        let (input, count) = (data.as_ptr().cast_mut(), data.len() as CK_ULONG);
        let rv = call!(
            self.target,
            C_Decrypt(self.handle, input, count, answer.as_mut_ptr(), &mut length)
        );
        ok(rv)?;
        answer.truncate(length as usize);
        Ok(answer)
    }

    pub(crate) fn random(&self, length: usize) -> Answer<Zeroizing<Vec<u8>>> {
        let mut drawn = Zeroizing::new(vec![0; length]);
        let count = length as CK_ULONG;
        ok(call!(self.target, C_GenerateRandom(self.handle, drawn.as_mut_ptr(), count)))?;
        Ok(drawn)
    }

    /// A session object that is destroyed when the value is dropped.
    pub(crate) fn passing(&self, object: CK_OBJECT_HANDLE) -> Passing<'_> {
        Passing { session: *self, object }
    }
}

fn room(data: &[u8]) -> (Zeroizing<Vec<u8>>, CK_ULONG) {
    (Zeroizing::new(vec![0; data.len() + 32]), (data.len() + 32) as CK_ULONG)
}

/// An object that lives for one call.
pub(crate) struct Passing<'t> {
    session: Session<'t>,
    pub(crate) object: CK_OBJECT_HANDLE,
}

impl Drop for Passing<'_> {
    fn drop(&mut self) {
        // What cannot be destroyed dies with its session.
        let _ = call!(self.session.target, C_DestroyObject(self.session.handle, self.object));
    }
}

/// Attributes of an object that the shim reads and destroys within one call.
pub(crate) const READABLE: [(CK_ATTRIBUTE_TYPE, &[u8]); 3] =
    [(CKA_TOKEN, &[0]), (CKA_SENSITIVE, &[0]), (CKA_EXTRACTABLE, &[1])];
