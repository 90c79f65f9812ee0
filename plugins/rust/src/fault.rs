//! One way out for everything that can fail: a message of one line, without a backtrace.

use std::panic::{catch_unwind, AssertUnwindSafe};

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

pyo3::create_exception!(
    _native,
    NativeError,
    PyRuntimeError,
    "What the Rust side could not do, in one line."
);

/// Runs `work` without the interpreter lock; errors and panics become a `NativeError`.
pub fn detached<T: Send>(
    py: Python<'_>,
    work: impl FnOnce() -> candle::Result<T> + Send,
) -> PyResult<T> {
    let outcome = py.detach(|| catch_unwind(AssertUnwindSafe(work)));
    match outcome {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(NativeError::new_err(plain(&error.to_string()))),
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no reason given");
            Err(NativeError::new_err(format!("internal failure: {}", plain(text))))
        }
    }
}

/// Cuts what candle appends to its messages: numbered frames, each with its place.
pub fn plain(text: &str) -> String {
    let is_frame = |line: &str| {
        let digits = line.trim_start().bytes().take_while(u8::is_ascii_digit).count();
        digits > 0 && line.trim_start()[digits..].starts_with(": ")
    };
    text.lines()
        .take_while(|line| !is_frame(line))
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join("; ")
}
