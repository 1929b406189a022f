//! Rust that counts control tokens through the capsule, without crates: Python hands it the table's address.
//! The table begins as pyllm_api.h declares it; fields behind the ones that are used here need no declaration.
use std::ffi::{c_char, c_void, CStr, CString};

#[repr(C)]
pub struct PyllmApi {
    abi_major: u32,
    abi_minor: u32,
    size: usize,
    version: *const c_char,
    llama_commit: *const c_char,
    build_id: *const c_char,
    model: *const c_void,
    vocab: *const c_void,
    context: *const c_void,
    sampler: *const c_void,
    acquire: *const c_void,
    release: *const c_void,
    outputs_changed: *const c_void,
    function: extern "C" fn(*const c_char) -> *const c_void,
    vocab_n_tokens: extern "C" fn(*const c_void) -> i32,
}

/// Number of control tokens of the vocabulary at `vocab`; -1 for another major version, -2 without the function.
///
/// # Safety
/// Both addresses are those that pyllm gave.
#[no_mangle]
pub unsafe extern "C" fn count_control(api: *const PyllmApi, vocab: *const c_void) -> i32 {
    let api = &*api;
    if api.abi_major != 1 || api.size < std::mem::size_of::<PyllmApi>() || CStr::from_ptr(api.version).to_bytes().is_empty() {
        return -1;
    }
    let name = CString::new("llama_vocab_is_control").unwrap();
    let address = (api.function)(name.as_ptr());
    if address.is_null() {
        return -2;
    }
    let is_control: extern "C" fn(*const c_void, i32) -> bool = std::mem::transmute(address);
    (0..(api.vocab_n_tokens)(vocab)).filter(|&token| is_control(vocab, token)).count() as i32
}
