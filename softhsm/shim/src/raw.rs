//! What an application points to: bytes, mechanisms, templates, and buffers for an answer.
//!
//! The constructors are unsafe: they take the application's word, PKCS#11's contract, that a pointer
//! and a length name memory that is its own and stays for the call. Everything after is safe.

use std::mem::size_of;
use std::ptr;

use cryptoki_sys::{
    CK_ATTRIBUTE, CK_ATTRIBUTE_TYPE, CK_BYTE, CK_MECHANISM, CK_MECHANISM_TYPE, CK_RV, CK_ULONG,
    CKA_MODIFIABLE, CKR_ARGUMENTS_BAD, CKR_BUFFER_TOO_SMALL, CKR_OK,
};
use zeroize::Zeroizing;

/// What CK_UNAVAILABLE_INFORMATION is for a length.
pub(crate) const UNAVAILABLE: CK_ULONG = CK_ULONG::MAX;

/// The bytes that the application points to; none for a null pointer.
///
/// # Safety
/// `first` is null or names `length` bytes that stay unchanged for `'a`.
pub(crate) unsafe fn bytes<'a>(first: *const CK_BYTE, length: CK_ULONG) -> &'a [u8] {
    if first.is_null() {
        return &[];
    }
    // SAFETY: the caller's promise is just this.
    unsafe { std::slice::from_raw_parts(first, length as usize) }
}

/// A mechanism and its parameter.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mechanism<'a> {
    pub(crate) kind: CK_MECHANISM_TYPE,
    pub(crate) parameter: &'a [u8],
}

impl<'a> Mechanism<'a> {
    /// # Safety
    /// `mechanism` is null or names a mechanism whose parameter stays for `'a`.
    pub(crate) unsafe fn read(mechanism: *const CK_MECHANISM) -> Result<Self, CK_RV> {
        if mechanism.is_null() {
            return Err(CKR_ARGUMENTS_BAD);
        }
        // SAFETY: not null, and the caller promises a mechanism.
        let CK_MECHANISM { mechanism: kind, pParameter, ulParameterLen } = unsafe { *mechanism };
        // SAFETY: the caller promises that the parameter is there for `'a`.
        let parameter = unsafe { bytes(pParameter.cast(), ulParameterLen) };
        Ok(Self { kind, parameter })
    }

    pub(crate) fn plain(kind: CK_MECHANISM_TYPE) -> Self {
        Self { kind, parameter: &[] }
    }

    /// For the target; valid as long as `'a` is.
    pub(crate) fn raw(&self) -> CK_MECHANISM {
        let none = self.parameter.is_empty();
        CK_MECHANISM {
            mechanism: self.kind,
            pParameter: if none { ptr::null_mut() } else { self.parameter.as_ptr() as *mut _ },
            ulParameterLen: self.parameter.len() as CK_ULONG,
        }
    }

    /// The parameter as a number.
    pub(crate) fn number(&self) -> Option<CK_ULONG> {
        number(self.parameter)
    }
}

/// A CK_ULONG in the memory's own form.
pub(crate) fn number(bytes: &[u8]) -> Option<CK_ULONG> {
    bytes.try_into().ok().map(CK_ULONG::from_ne_bytes)
}

/// A list of CK_ULONGs in the memory's own form.
pub(crate) fn numbers(bytes: &[u8]) -> Vec<CK_ULONG> {
    bytes.chunks_exact(size_of::<CK_ULONG>()).filter_map(number).collect()
}

/// An attribute template: the application's own attributes, and those that the shim puts there.
pub(crate) struct Template<'a> {
    attributes: Vec<CK_ATTRIBUTE>,
    /// What our attributes point to: moving a vector does not move its bytes.
    owned: Vec<Zeroizing<Vec<u8>>>,
    #[expect(clippy::vec_box, reason = "attributes above point to these: they must not move")]
    inner: Vec<Box<CK_ATTRIBUTE>>,
    _application: std::marker::PhantomData<&'a CK_ATTRIBUTE>,
}

impl<'a> Template<'a> {
    /// # Safety
    /// `first` is null or names `count` attributes, whose values stay for `'a`.
    pub(crate) unsafe fn read(first: *const CK_ATTRIBUTE, count: CK_ULONG) -> Self {
        let mut template = Self::new(&[]);
        if !first.is_null() {
            // SAFETY: the caller's promise is just this.
            let there = unsafe { std::slice::from_raw_parts(first, count as usize) };
            template.attributes.extend_from_slice(there);
        }
        template
    }

    pub(crate) fn new(values: &[(CK_ATTRIBUTE_TYPE, &[u8])]) -> Self {
        let (attributes, owned, inner) = (Vec::new(), Vec::new(), Vec::new());
        let _application = std::marker::PhantomData;
        let mut template = Self { attributes, owned, inner, _application };
        for (kind, value) in values {
            template.set(*kind, value);
        }
        template
    }

    pub(crate) fn value(&self, kind: CK_ATTRIBUTE_TYPE) -> Option<&[u8]> {
        let there = self.attributes.iter().find(|attribute| attribute.type_ == kind)?;
        // SAFETY: read from the application, whose values stay for `'a`, or set by us, and then
        // `owned` holds the bytes.
        Some(unsafe { bytes(there.pValue.cast(), there.ulValueLen) })
    }

    pub(crate) fn flag(&self, kind: CK_ATTRIBUTE_TYPE) -> Option<bool> {
        self.value(kind).map(|value| value.first().is_some_and(|byte| *byte != 0))
    }

    pub(crate) fn number(&self, kind: CK_ATTRIBUTE_TYPE) -> Option<CK_ULONG> {
        self.value(kind).and_then(number)
    }

    pub(crate) fn remove(&mut self, kind: CK_ATTRIBUTE_TYPE) {
        self.attributes.retain(|attribute| attribute.type_ != kind);
    }

    /// Puts a value in the place of the one that is there.
    pub(crate) fn set(&mut self, kind: CK_ATTRIBUTE_TYPE, value: &[u8]) {
        self.remove(kind);
        let value = Zeroizing::new(value.to_vec());
        self.attributes.push(attribute(kind, &value));
        self.owned.push(value);
    }

    /// Puts a template of one attribute there.
    pub(crate) fn nest(&mut self, kind: CK_ATTRIBUTE_TYPE, inner: CK_ATTRIBUTE_TYPE, value: &[u8]) {
        self.remove(kind);
        let value = Zeroizing::new(value.to_vec());
        let inner = Box::new(attribute(inner, &value));
        self.attributes.push(CK_ATTRIBUTE {
            type_: kind,
            pValue: ptr::from_ref(&*inner).cast_mut().cast(),
            ulValueLen: size_of::<CK_ATTRIBUTE>() as CK_ULONG,
        });
        self.owned.push(value);
        self.inner.push(inner);
    }

    /// For the target; valid as long as this template is.
    pub(crate) fn raw(&mut self) -> (*mut CK_ATTRIBUTE, CK_ULONG) {
        // SoftHSM takes attributes in their order, and after this one no other of a derived key.
        self.attributes.sort_by_key(|attribute| attribute.type_ == CKA_MODIFIABLE);
        (self.attributes.as_mut_ptr(), self.attributes.len() as CK_ULONG)
    }
}

fn attribute(kind: CK_ATTRIBUTE_TYPE, value: &[u8]) -> CK_ATTRIBUTE {
    CK_ATTRIBUTE {
        type_: kind,
        pValue: value.as_ptr().cast_mut().cast(),
        ulValueLen: value.len() as CK_ULONG,
    }
}

/// Where the application wants an answer, by the convention of two calls: without a buffer it asks
/// for the length.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    buffer: *mut CK_BYTE,
    length: *mut CK_ULONG,
}

impl Output {
    /// # Safety
    /// `length` is null or names a length; `buffer` is null or names that many bytes. Both are the
    /// application's for as long as this value is used.
    pub(crate) unsafe fn new(buffer: *mut CK_BYTE, length: *mut CK_ULONG) -> Self {
        Self { buffer, length }
    }

    /// Whether only the length is asked for.
    pub(crate) fn is_query(&self) -> bool {
        self.buffer.is_null()
    }

    /// Whether a `length` of bytes may be written now; tells the length in any case.
    pub(crate) fn announce(&self, length: usize) -> Result<(), CK_RV> {
        if self.length.is_null() {
            return Err(CKR_ARGUMENTS_BAD);
        }
        // SAFETY: not null, and by the promise of `new` a length.
        let room = unsafe { self.length.replace(length as CK_ULONG) };
        if self.is_query() || room >= length as CK_ULONG {
            Ok(())
        } else {
            Err(CKR_BUFFER_TOO_SMALL)
        }
    }

    /// Writes the answer, or its length.
    pub(crate) fn write(&self, answer: &[u8]) -> CK_RV {
        if let Err(rv) = self.announce(answer.len()) {
            return rv;
        }
        if !self.is_query() {
            // SAFETY: `announce` found room for that many bytes, and the buffer is the
            // application's, which no slice of ours overlaps.
            unsafe { ptr::copy_nonoverlapping(answer.as_ptr(), self.buffer, answer.len()) };
        }
        CKR_OK
    }

    /// Turns one bit of an answer that was written.
    pub(crate) fn flip(&self) {
        if self.is_query() || self.length.is_null() {
            return;
        }
        // SAFETY: not null, and by the promise of `new` a length: that of the answer.
        if unsafe { *self.length } > 0 {
            // SAFETY: the answer has a first byte.
            unsafe { *self.buffer ^= 1 };
        }
    }
}
