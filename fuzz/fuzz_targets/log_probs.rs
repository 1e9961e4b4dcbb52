#![no_main]

libfuzzer_sys::fuzz_target!(
    init: q4hifi_fuzz::work_in_this_thread(),
    |data: &[u8]| q4hifi_fuzz::targets::log_probs(data)
);
