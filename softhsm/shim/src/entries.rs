//! The functions that stand in the place of the target's.
//!
//! Each entry counts its call, lets it suffer what the control file says, and then does it: by the
//! target, or by the shim. A call that fails by the control file ends what its session had begun,
//! as on a device; one that says that it is done already has been done.

use std::ffi::c_void;

use cryptoki_sys::{
    CK_ATTRIBUTE, CK_BBOOL, CK_BYTE, CK_C_Encrypt, CK_FLAGS, CK_FUNCTION_LIST, CK_MECHANISM,
    CK_NOTIFY, CK_OBJECT_HANDLE, CK_RV, CK_SESSION_HANDLE, CK_SESSION_INFO, CK_SLOT_ID,
    CK_TOKEN_INFO, CK_ULONG, CK_USER_TYPE, CKA_DECRYPT, CKA_ENCRYPT, CKA_SIGN, CKA_VERIFY,
    CKR_ARGUMENTS_BAD, CKR_BUFFER_TOO_SMALL, CKR_CRYPTOKI_ALREADY_INITIALIZED, CKR_GENERAL_ERROR,
    CKR_OK, CKR_USER_ALREADY_LOGGED_IN,
};

use crate::control::Fate;
use crate::emulate;
use crate::masks::{Origin, disguise};
use crate::process::shim;
use crate::raw::{Mechanism, Output, Template, UNAVAILABLE, bytes};
use crate::target::{Answer, call};
use crate::vendor;

/// Ends an operation that the target has begun: does it, and throws the answer away.
fn end(function: CK_C_Encrypt, rv: CK_RV, session: CK_SESSION_HANDLE, data: &[u8]) {
    // After this one an application may come again with more room.
    if rv == CKR_BUFFER_TOO_SMALL {
        return;
    }
    let mut nowhere = zeroize::Zeroizing::new(vec![0; data.len() + 512]);
    let mut length = nowhere.len() as CK_ULONG;
    if let Some(function) = function {
        let (first, count) = (data.as_ptr().cast_mut(), data.len() as CK_ULONG);
        // SAFETY: input and output are slices that outlive the call, with their own lengths.
        unsafe { function(session, first, count, nowhere.as_mut_ptr(), &mut length) };
    }
}

/// Hands a new handle over.
///
/// # Safety
/// `to` is null or a place for a handle.
unsafe fn hand_over(made: Answer<CK_OBJECT_HANDLE>, to: *mut CK_OBJECT_HANDLE) -> CK_RV {
    match made {
        Err(rv) => rv,
        Ok(_) if to.is_null() => CKR_ARGUMENTS_BAD,
        Ok(handle) => {
            // SAFETY: not null, and the caller promises a place.
            unsafe { *to = handle };
            CKR_OK
        }
    }
}

/// The application's attributes.
///
/// # Safety
/// `first` is null or names `count` attributes, which nobody else uses for `'a`.
unsafe fn attributes<'a>(first: *mut CK_ATTRIBUTE, count: CK_ULONG) -> &'a mut [CK_ATTRIBUTE] {
    if first.is_null() {
        return &mut [];
    }
    // SAFETY: the caller's promise is just this.
    unsafe { std::slice::from_raw_parts_mut(first, count as usize) }
}

const fn short(name: &'static str) -> &'static str {
    name.split_at("C_".len()).1
}

/// Writes the entries. `whole` says whether a call is more than the question for a length; `fails`
/// is done when the control file lets it fail, `flips` when it wants a wrong answer.
macro_rules! entries {
    ($(
        fn $name:ident($shim:ident, $rv:ident; $($argument:ident: $kind:ty),* $(,)?)
        whole $whole:expr;
        $(fails $fails:block)?
        $(flips $flips:block)?
        does $body:block
    )*) => {
        /// The replaced functions, without `C_`, in the order of their counters.
        pub(crate) const NAMES: &[&str] = &[$(short(stringify!($name))),*];

        #[expect(non_camel_case_types, clippy::enum_variant_names, reason = "PKCS#11 names them")]
        enum At { $($name),* }

        $(
            /// # Safety
            /// PKCS#11's contract with whoever calls its function of this name.
            #[expect(non_snake_case, reason = "PKCS#11 names it")]
            unsafe extern "C" fn $name($($argument: $kind),*) -> CK_RV {
                let Some($shim) = shim() else { return CKR_GENERAL_ERROR };
                let fate = if $whole { $shim.begin(At::$name as usize) } else { Fate::Normal };
                if let Fate::Fails($rv) = fate {
                    $($fails)?
                    return $rv;
                }
                let $rv: CK_RV = $body;
                $(if $rv == CKR_OK && fate == Fate::Flipped { $flips })?
                $rv
            }
        )*

        /// Puts the entries into a copy of the target's list.
        pub(crate) fn replace(list: &mut CK_FUNCTION_LIST) {
            $(list.$name = Some($name);)*
        }
    };
}

/// Input bytes of an entry.
macro_rules! input {
    ($first:expr, $length:expr) => {
        // SAFETY: the entry's caller keeps PKCS#11's contract: these bytes stay for the call.
        unsafe { bytes($first, $length) }
    };
}

/// An entry's mechanism, or its return with what is wrong.
macro_rules! mechanism {
    ($from:expr) => {
        // SAFETY: the entry's caller keeps PKCS#11's contract: the mechanism stays for the call.
        match unsafe { Mechanism::read($from) } {
            Ok(mechanism) => mechanism,
            Err(rv) => return rv,
        }
    };
}

/// An entry's output.
macro_rules! output {
    ($buffer:expr, $length:expr) => {
        // SAFETY: the entry's caller keeps PKCS#11's contract: both stay for the call.
        unsafe { Output::new($buffer, $length) }
    };
}

/// An entry's template.
macro_rules! template {
    ($first:expr, $count:expr) => {
        // SAFETY: the entry's caller keeps PKCS#11's contract: the values stay for the call.
        unsafe { Template::read($first, $count) }
    };
}

/// An entry's new handle, handed over.
macro_rules! handle {
    ($made:expr, $to:expr) => {{
        let made = $made;
        // SAFETY: the entry's caller keeps PKCS#11's contract: `$to` is a place for a handle.
        unsafe { hand_over(made, $to) }
    }};
}

entries! {
    fn C_Initialize(shim, rv; arguments: *mut c_void)
    whole true;
    fails {
        // What it says is so: somebody else did it.
        if rv == CKR_CRYPTOKI_ALREADY_INITIALIZED {
            call!(shim.target, C_Initialize(arguments));
        }
    }
    does {
        shim.forget_all();
        call!(shim.target, C_Initialize(arguments))
    }

    fn C_Finalize(shim, rv; reserved: *mut c_void)
    whole true;
    does {
        shim.forget_all();
        call!(shim.target, C_Finalize(reserved))
    }

    fn C_GetSlotList(shim, rv; present: CK_BBOOL, list: *mut CK_SLOT_ID, count: *mut CK_ULONG)
    whole !list.is_null();
    does { call!(shim.target, C_GetSlotList(present, list, count)) }

    fn C_GetTokenInfo(shim, rv; slot: CK_SLOT_ID, info: *mut CK_TOKEN_INFO)
    whole true;
    does { call!(shim.target, C_GetTokenInfo(slot, info)) }

    fn C_OpenSession(
        shim, rv;
        slot: CK_SLOT_ID,
        flags: CK_FLAGS,
        application: *mut c_void,
        notify: CK_NOTIFY,
        session: *mut CK_SESSION_HANDLE,
    )
    whole true;
    does { call!(shim.target, C_OpenSession(slot, flags, application, notify, session)) }

    fn C_CloseSession(shim, rv; session: CK_SESSION_HANDLE)
    whole true;
    does {
        shim.operations.forget(session);
        call!(shim.target, C_CloseSession(session))
    }

    fn C_CloseAllSessions(shim, rv; slot: CK_SLOT_ID)
    whole true;
    does {
        shim.operations.forget_all();
        call!(shim.target, C_CloseAllSessions(slot))
    }

    fn C_GetSessionInfo(shim, rv; session: CK_SESSION_HANDLE, info: *mut CK_SESSION_INFO)
    whole true;
    does { call!(shim.target, C_GetSessionInfo(session, info)) }

    fn C_Login(
        shim, rv;
        session: CK_SESSION_HANDLE,
        user: CK_USER_TYPE,
        pin: *mut CK_BYTE,
        length: CK_ULONG,
    )
    whole true;
    fails {
        if rv == CKR_USER_ALREADY_LOGGED_IN {
            call!(shim.target, C_Login(session, user, pin, length));
        }
    }
    does { call!(shim.target, C_Login(session, user, pin, length)) }

    fn C_Logout(shim, rv; session: CK_SESSION_HANDLE)
    whole true;
    does {
        shim.forget_all();
        call!(shim.target, C_Logout(session))
    }

    fn C_CreateObject(
        shim, rv;
        session: CK_SESSION_HANDLE,
        first: *mut CK_ATTRIBUTE,
        count: CK_ULONG,
        object: *mut CK_OBJECT_HANDLE,
    )
    whole true;
    does {
        let mut template = template!(first, count);
        let made = disguise(&mut template, Origin::Given)
            .and_then(|()| shim.session(session).create(&mut template));
        handle!(made, object)
    }

    fn C_CopyObject(
        shim, rv;
        session: CK_SESSION_HANDLE,
        object: CK_OBJECT_HANDLE,
        first: *mut CK_ATTRIBUTE,
        count: CK_ULONG,
        copy: *mut CK_OBJECT_HANDLE,
    )
    whole true;
    does {
        let known = shim.objects.of(shim.session(session), object);
        match known.permit_change(&template!(first, count)) {
            Ok(()) => call!(shim.target, C_CopyObject(session, object, first, count, copy)),
            Err(rv) => rv,
        }
    }

    fn C_DestroyObject(shim, rv; session: CK_SESSION_HANDLE, object: CK_OBJECT_HANDLE)
    whole true;
    does {
        shim.objects.forget(object);
        call!(shim.target, C_DestroyObject(session, object))
    }

    fn C_GetAttributeValue(
        shim, rv;
        session: CK_SESSION_HANDLE,
        object: CK_OBJECT_HANDLE,
        first: *mut CK_ATTRIBUTE,
        count: CK_ULONG,
    )
    // SAFETY: the caller keeps PKCS#11's contract.
    whole unsafe { attributes(first, count) }.iter().any(|asked| !asked.pValue.is_null());
    flips {
        // SAFETY: the caller keeps PKCS#11's contract.
        let answered = unsafe { attributes(first, count) };
        let filled = |one: &&mut CK_ATTRIBUTE| {
            !one.pValue.is_null() && one.ulValueLen > 0 && one.ulValueLen != UNAVAILABLE
        };
        if let Some(one) = answered.iter_mut().find(filled) {
            // SAFETY: the answer has a first byte, in the application's buffer.
            unsafe { *one.pValue.cast::<u8>() ^= 1 };
        }
    }
    does {
        let known = shim.objects.of(shim.session(session), object);
        if known.is_masked() {
            // SAFETY: the caller keeps PKCS#11's contract.
            let asked = unsafe { attributes(first, count) };
            known.get_attribute_value(shim.session(session), object, asked)
        } else {
            call!(shim.target, C_GetAttributeValue(session, object, first, count))
        }
    }

    fn C_SetAttributeValue(
        shim, rv;
        session: CK_SESSION_HANDLE,
        object: CK_OBJECT_HANDLE,
        first: *mut CK_ATTRIBUTE,
        count: CK_ULONG,
    )
    whole true;
    does {
        let known = shim.objects.of(shim.session(session), object);
        shim.objects.forget(object);
        match known.permit_change(&template!(first, count)) {
            Ok(()) => call!(shim.target, C_SetAttributeValue(session, object, first, count)),
            Err(rv) => rv,
        }
    }

    fn C_FindObjectsInit(
        shim, rv;
        session: CK_SESSION_HANDLE,
        first: *mut CK_ATTRIBUTE,
        count: CK_ULONG,
    )
    whole true;
    does { call!(shim.target, C_FindObjectsInit(session, first, count)) }

    fn C_FindObjects(
        shim, rv;
        session: CK_SESSION_HANDLE,
        objects: *mut CK_OBJECT_HANDLE,
        room: CK_ULONG,
        count: *mut CK_ULONG,
    )
    whole true;
    does { call!(shim.target, C_FindObjects(session, objects, room, count)) }

    fn C_FindObjectsFinal(shim, rv; session: CK_SESSION_HANDLE)
    whole true;
    does { call!(shim.target, C_FindObjectsFinal(session)) }

    fn C_EncryptInit(
        shim, rv;
        session: CK_SESSION_HANDLE,
        by: *mut CK_MECHANISM,
        key: CK_OBJECT_HANDLE,
    )
    whole true;
    does {
        let refusal =
            shim.refusal(shim.session(session), &mechanism!(by), key, CKA_ENCRYPT);
        refusal.unwrap_or_else(|| call!(shim.target, C_EncryptInit(session, by, key)))
    }

    fn C_Encrypt(
        shim, rv;
        session: CK_SESSION_HANDLE,
        data: *mut CK_BYTE,
        length: CK_ULONG,
        out: *mut CK_BYTE,
        out_length: *mut CK_ULONG,
    )
    whole !out.is_null();
    fails { end(shim.target.list.C_Encrypt, rv, session, input!(data, length)) }
    flips { output!(out, out_length).flip() }
    does { call!(shim.target, C_Encrypt(session, data, length, out, out_length)) }

    fn C_DecryptInit(
        shim, rv;
        session: CK_SESSION_HANDLE,
        by: *mut CK_MECHANISM,
        key: CK_OBJECT_HANDLE,
    )
    whole true;
    does {
        let mechanism = mechanism!(by);
        let at = shim.session(session);
        if mechanism.kind == vendor::TRANSLATE_PIN {
            let begun = shim.operations.begin_translation(&shim.objects, at, &mechanism, key);
            begun.err().unwrap_or(CKR_OK)
        } else {
            let refusal = shim.refusal(at, &mechanism, key, CKA_DECRYPT);
            refusal.unwrap_or_else(|| call!(shim.target, C_DecryptInit(session, by, key)))
        }
    }

    fn C_Decrypt(
        shim, rv;
        session: CK_SESSION_HANDLE,
        data: *mut CK_BYTE,
        length: CK_ULONG,
        out: *mut CK_BYTE,
        out_length: *mut CK_ULONG,
    )
    whole !out.is_null();
    fails {
        shim.operations.forget(session);
        end(shim.target.list.C_Decrypt, rv, session, input!(data, length));
    }
    flips { output!(out, out_length).flip() }
    does {
        let ours = shim.operations.translate(
            shim.session(session),
            input!(data, length),
            output!(out, out_length),
        );
        ours.unwrap_or_else(|| {
            call!(shim.target, C_Decrypt(session, data, length, out, out_length))
        })
    }

    fn C_SignInit(
        shim, rv;
        session: CK_SESSION_HANDLE,
        by: *mut CK_MECHANISM,
        key: CK_OBJECT_HANDLE,
    )
    whole true;
    does {
        let mechanism = mechanism!(by);
        let at = shim.session(session);
        if mechanism.kind == vendor::RETAIL_MAC {
            let begun = shim.operations.begin_mac(&shim.objects, at, &mechanism, key);
            begun.err().unwrap_or(CKR_OK)
        } else {
            let refusal = shim.refusal(at, &mechanism, key, CKA_SIGN);
            refusal.unwrap_or_else(|| call!(shim.target, C_SignInit(session, by, key)))
        }
    }

    fn C_Sign(
        shim, rv;
        session: CK_SESSION_HANDLE,
        data: *mut CK_BYTE,
        length: CK_ULONG,
        out: *mut CK_BYTE,
        out_length: *mut CK_ULONG,
    )
    whole !out.is_null();
    fails {
        shim.operations.forget(session);
        end(shim.target.list.C_Sign, rv, session, input!(data, length));
    }
    flips { output!(out, out_length).flip() }
    does {
        let ours = shim.operations.mac(
            &shim.objects,
            shim.session(session),
            input!(data, length),
            output!(out, out_length),
        );
        ours.unwrap_or_else(|| call!(shim.target, C_Sign(session, data, length, out, out_length)))
    }

    fn C_VerifyInit(
        shim, rv;
        session: CK_SESSION_HANDLE,
        by: *mut CK_MECHANISM,
        key: CK_OBJECT_HANDLE,
    )
    whole true;
    does {
        let refusal = shim.refusal(shim.session(session), &mechanism!(by), key, CKA_VERIFY);
        refusal.unwrap_or_else(|| call!(shim.target, C_VerifyInit(session, by, key)))
    }

    fn C_Verify(
        shim, rv;
        session: CK_SESSION_HANDLE,
        data: *mut CK_BYTE,
        length: CK_ULONG,
        signature: *mut CK_BYTE,
        signature_length: CK_ULONG,
    )
    whole true;
    fails { call!(shim.target, C_Verify(session, data, length, signature, signature_length)); }
    does { call!(shim.target, C_Verify(session, data, length, signature, signature_length)) }

    fn C_GenerateKey(
        shim, rv;
        session: CK_SESSION_HANDLE,
        by: *mut CK_MECHANISM,
        first: *mut CK_ATTRIBUTE,
        count: CK_ULONG,
        key: *mut CK_OBJECT_HANDLE,
    )
    whole true;
    does {
        let mechanism = mechanism!(by);
        let mut template = template!(first, count);
        let made = disguise(&mut template, Origin::Generated(mechanism.kind))
            .and_then(|()| shim.session(session).generate(&mechanism, &mut template));
        handle!(made, key)
    }

    fn C_GenerateRandom(shim, rv; session: CK_SESSION_HANDLE, out: *mut CK_BYTE, length: CK_ULONG)
    whole true;
    flips {
        let mut length = length;
        output!(out, &mut length).flip();
    }
    does { call!(shim.target, C_GenerateRandom(session, out, length)) }

    fn C_WrapKey(
        shim, rv;
        session: CK_SESSION_HANDLE,
        by: *mut CK_MECHANISM,
        wrapping: CK_OBJECT_HANDLE,
        key: CK_OBJECT_HANDLE,
        out: *mut CK_BYTE,
        out_length: *mut CK_ULONG,
    )
    whole !out.is_null();
    flips { output!(out, out_length).flip() }
    does {
        // The target may write a length even where it refuses.
        let room = if out_length.is_null() {
            return CKR_ARGUMENTS_BAD;
        } else {
            // SAFETY: not null, and the caller keeps PKCS#11's contract.
            unsafe { *out_length }
        };
        let forward = || {
            let rv = call!(shim.target, C_WrapKey(session, by, wrapping, key, out, out_length));
            if rv != CKR_OK && rv != CKR_BUFFER_TOO_SMALL {
                // SAFETY: as above.
                unsafe { *out_length = room };
            }
            rv
        };
        emulate::wrap(
            &shim.objects,
            shim.session(session),
            &mechanism!(by),
            wrapping,
            key,
            forward,
            output!(out, out_length),
        )
    }

    fn C_UnwrapKey(
        shim, rv;
        session: CK_SESSION_HANDLE,
        by: *mut CK_MECHANISM,
        unwrapping: CK_OBJECT_HANDLE,
        wrapped: *mut CK_BYTE,
        length: CK_ULONG,
        first: *mut CK_ATTRIBUTE,
        count: CK_ULONG,
        key: *mut CK_OBJECT_HANDLE,
    )
    whole true;
    does {
        let made = emulate::unwrap(
            &shim.objects,
            shim.session(session),
            &mechanism!(by),
            unwrapping,
            input!(wrapped, length),
            template!(first, count),
        );
        handle!(made, key)
    }

    fn C_DeriveKey(
        shim, rv;
        session: CK_SESSION_HANDLE,
        by: *mut CK_MECHANISM,
        base: CK_OBJECT_HANDLE,
        first: *mut CK_ATTRIBUTE,
        count: CK_ULONG,
        key: *mut CK_OBJECT_HANDLE,
    )
    whole true;
    does {
        let made = emulate::derive(
            &shim.objects,
            shim.session(session),
            &mechanism!(by),
            base,
            template!(first, count),
        );
        handle!(made, key)
    }
}
