//! The fuzz targets: functions that take arbitrary bytes. A panic or an access out of bounds is a bug.
//!
//! libFuzzer calls them with its inputs, and `tests/fuzz.rs` with random ones. They use only public
//! functions of q4hifi. The first bytes of an input choose the options; the rest are blocks, floats or
//! both. Buffers are exactly as long as necessary, so that a sanitizer detects every access beyond them.

use q4hifi::block::{HifiBlock, MAX_OUTLIERS, QK_K, TensorType};
use q4hifi::dispatch::{self, RowsToEncode};
use q4hifi::feedback::Hessian;
use q4hifi::isa::Isa;
use q4hifi::logits::{self, Logits};
use q4hifi::matmul::Matrix;
use q4hifi::rows::{self, Encoding, Outliers, OutliersMut, Source, hifi_fork as fork};

/// A function that takes arbitrary bytes, and panics if it finds a bug.
pub type Target = fn(&[u8]);

/// Every target with its name.
pub const TARGETS: [(&str, Target); 5] = [
    ("decode", decode),
    ("encode", encode),
    ("outliers", outliers),
    ("multiply", multiply),
    ("log_probs", log_probs),
];

/// The largest weight. Larger ones may overflow f16 scales, and callers check for that.
const LARGEST: f32 = 60_000.0;

/// The largest importance. Larger ones may overflow the sums for the scales, and callers check for that.
const LARGEST_IMPORTANCE: f32 = 1e20;

/// Decodes blocks of any type, and checks that every instruction set computes the same weights.
pub fn decode(data: &[u8]) {
    let mut input = Input(data);
    let kind = input.kind();
    let row_length = input.u8() as usize + 1;
    if Source::new(kind, input.0, row_length).is_ok() {
        assert_eq!(row_length % kind.block_weights(), 0);
    }
    let n_blocks = input.0.len() / kind.block_bytes();
    if n_blocks == 0 {
        return;
    }
    let blocks = Box::from(&input.0[..n_blocks * kind.block_bytes()]);
    let weights = decoded(Isa::Scalar, kind, &blocks);
    for isa in available() {
        assert!(same(&decoded(isa, kind, &blocks), &weights), "{kind:?} on {isa:?}");
    }
    let source = Source::new(kind, &blocks, weights.len()).expect("a row of whole blocks");
    let is_finite = weights.iter().all(|w| w.is_finite());
    assert_eq!(rows::check_finite(source).is_ok(), is_finite);
}

/// Encodes arbitrary weights with arbitrary importances. Checks that every instruction set writes the same
/// blocks, and that these decode to finite weights.
pub fn encode(data: &[u8]) {
    let mut input = Input(data);
    let kind = input.kind();
    let options = input.u8();
    let (is_weighted, refine, is_correlated) = (options & 1 > 0, options & 2 > 0, options & 4 > 0);
    let n_rows = 1 + usize::from(options >> 3 & 3);
    let row_length = kind.block_weights() * (1 + usize::from(options >> 5 & 1));
    let x = input.floats(n_rows * row_length);
    let importance = is_weighted.then(|| input.floats(row_length));
    let importance = importance.as_deref();

    let inputs = (is_correlated && row_length <= QK_K).then(|| {
        let columns = input.floats(row_length);
        let pairs = row_length * (row_length - 1) / 2;
        let correlations: Vec<i8> = input.cycle(pairs).map(|byte| byte as i8).collect();
        Hessian::new(&columns, &correlations, input.float())
    });
    let encoding = match &inputs {
        Some(Err(_)) => return,
        Some(Ok(hessian)) if refine => Encoding::ErrorFeedback(hessian),
        _ if refine => Encoding::Refined,
        _ => Encoding::Ggml,
    };
    let source = Source::from_f32(&x, row_length).expect("whole blocks");
    let mut out = vec![0u8; n_rows * kind.row_bytes(row_length).expect("whole blocks")];
    let found = rows::quantize(source, kind, importance, encoding, &mut out);
    let is_legal = x.iter().all(|x| x.is_finite())
        && importance.is_none_or(|w| w.iter().all(|w| w.is_finite() && *w >= 0.0));
    assert_eq!(found.is_ok(), is_legal, "{found:?}");
    if !is_legal {
        return;
    }
    let blocks = |isa| {
        let mut out = vec![0u8; out.len()];
        let mut rows = RowsToEncode { kind, x: &x, row_length, importance, out: &mut out };
        dispatch::quantize_rows(isa, rows.reborrow());
        if refine {
            dispatch::refine_rows(isa, rows);
        }
        out
    };
    let expected = blocks(Isa::Scalar);
    for isa in available() {
        assert!(blocks(isa) == expected, "{kind:?} on {isa:?}");
    }
    assert!(refine || out == expected, "{kind:?} of whole rows");
    let is_finite =
        |blocks: &[u8]| decoded(Isa::Scalar, kind, blocks).iter().all(|w| w.is_finite());
    assert_eq!(is_finite(&out), found.is_ok_and(|sums| sums.error.is_finite()), "{kind:?}");
    assert!(is_finite(&expected) || !are_moderate(&x, importance), "{kind:?}");
}

/// Whether scales can represent the weights, and the sums of importance times squared weight are finite.
fn are_moderate(x: &[f32], importance: Option<&[f32]>) -> bool {
    x.iter().all(|x| x.abs() <= LARGEST)
        && importance.is_none_or(|w| w.iter().all(|w| *w <= LARGEST_IMPORTANCE))
}

/// Encodes arbitrary weights as Q4_HIFI, or decodes arbitrary bytes as its split layout or the fork's.
pub fn outliers(data: &[u8]) {
    let mut input = Input(data);
    let (options, count) = (input.u8(), usize::from(input.u8()) % (MAX_OUTLIERS + 2));
    match options & 3 {
        0 => outliers_of_weights(input, count, options & 4 > 0, options & 8 > 0),
        1 => outliers_of_split(input, count),
        _ => outliers_of_fork(input, count),
    }
}

fn outliers_of_weights(mut input: Input<'_>, count: usize, is_weighted: bool, refine: bool) {
    let x = input.floats(QK_K);
    let importance = is_weighted.then(|| input.floats(QK_K));
    let importance = importance.as_deref();
    let source = Source::from_f32(&x, QK_K).expect("a block");
    let (mut base, mut index, mut residual) = split_buffers(1, count);
    let parts = OutliersMut { outliers: count, index: &mut index, residual: &mut residual };
    let encoding = if refine { Encoding::Refined } else { Encoding::Ggml };
    let found = rows::quantize_hifi(source, importance, encoding, &mut base, parts);
    let is_legal = count <= MAX_OUTLIERS
        && x.iter().all(|x| x.is_finite())
        && importance.is_none_or(|w| w.iter().all(|w| w.is_finite() && *w >= 0.0));
    assert_eq!(found.is_ok(), is_legal, "{found:?}");
    let Some(sums) = found.ok().filter(|_| is_legal) else { return };
    if !sums.error.is_finite() {
        // Callers reject such blocks, so their indices may even be unsorted.
        assert!(!are_moderate(&x, importance), "{index:?} {residual:?}");
        return;
    }
    assert!(is_increasing(&index), "{index:?}");
    if !refine {
        let weights = importance.map(|w| w.try_into().expect("a block"));
        let block = HifiBlock::encode(x.as_slice().try_into().expect("a block"), weights, count);
        assert_eq!(block.index(), index);
        assert!(block.residual().iter().flat_map(|r| r.to_le_bytes()).eq(residual.iter().copied()));
    }
    let weights = check_split(&base, count, &index, &residual).expect("increasing indices");
    assert!(weights.iter().all(|w| w.is_finite()), "{weights:?}");
}

fn outliers_of_split(mut input: Input<'_>, count: usize) {
    let n_blocks = 1 + usize::from(input.u8() & 1);
    let (mut base, mut index, mut residual) = split_buffers(n_blocks, count);
    for buffer in [&mut base, &mut index, &mut residual] {
        input.fill(buffer);
    }
    let is_legal = count <= MAX_OUTLIERS && index.chunks(count.max(1)).all(is_increasing);
    assert_eq!(check_split(&base, count, &index, &residual).is_some(), is_legal);
}

/// Decodes blocks of the split layout, and converts them to the fork's and back. None if they are rejected.
fn check_split(base: &[u8], count: usize, index: &[u8], residual: &[u8]) -> Option<Vec<f32>> {
    let source = Source::new(TensorType::Q4K, base, QK_K).expect("whole blocks");
    let outliers = Outliers { outliers: count, index, residual };
    let mut weights = vec![0f32; source.rows() * QK_K];
    rows::dequantize_hifi(source, outliers, &mut weights).ok()?;
    let mut blocks = vec![0u8; source.rows() * fork::row_bytes(QK_K).expect("a block")];
    if fork::from_split(source, outliers, &mut blocks).is_ok() {
        let mut from_fork = vec![0f32; weights.len()];
        fork::dequantize(&blocks, QK_K, &mut from_fork).expect("legal blocks");
        let (mut base, mut index, mut residual) = split_buffers(source.rows(), count);
        let parts = OutliersMut { outliers: count, index: &mut index, residual: &mut residual };
        fork::to_split(&blocks, QK_K, &mut base, parts).expect("the same number of outliers");
        assert_eq!(index, outliers.index);
    }
    Some(weights)
}

fn outliers_of_fork(input: Input<'_>, count: usize) {
    let size = fork::row_bytes(QK_K).expect("a block");
    let n_blocks = input.0.len() / size;
    let blocks: Box<[u8]> = Box::from(&input.0[..n_blocks * size]);
    let mut weights = vec![0f32; n_blocks * QK_K];
    let is_legal = fork::dequantize(&blocks, QK_K, &mut weights).is_ok();
    let (mut base, mut index, mut residual) = split_buffers(n_blocks, count);
    let parts = OutliersMut { outliers: count, index: &mut index, residual: &mut residual };
    if fork::to_split(&blocks, QK_K, &mut base, parts).is_ok() {
        assert!(is_legal && index.chunks(count.max(1)).all(is_increasing));
    }
}

/// Multiplies matrices of arbitrary blocks by arbitrary inputs, and checks that every instruction set
/// computes the same products.
pub fn multiply(data: &[u8]) {
    let mut input = Input(data);
    let kind = input.kind();
    let (options, count) = (input.u8(), usize::from(input.u8()) % (MAX_OUTLIERS + 2));
    let n_columns = 1 + usize::from(options & 15);
    let n_rows = 1 + usize::from(options >> 4 & 3);
    let is_hifi = kind == TensorType::Q4K && options & 64 > 0;
    let row_length = kind.block_weights().max(32);
    let mut blocks = vec![0u8; n_rows * kind.row_bytes(row_length).expect("whole blocks")];
    input.fill(&mut blocks);
    let (_, mut index, mut residual) = split_buffers(n_rows, if is_hifi { count } else { 0 });
    input.fill(&mut index);
    input.fill(&mut residual);
    let x = input.floats(n_columns * row_length);
    let matrix = if is_hifi {
        let outliers = Outliers { outliers: count, index: &index, residual: &residual };
        let matrix = Matrix::hifi(&blocks, row_length, outliers);
        assert_eq!(matrix.is_ok(), count <= MAX_OUTLIERS);
        let Ok(matrix) = matrix else { return };
        matrix
    } else {
        Matrix::new(Source::new(kind, &blocks, row_length).expect("whole rows"))
    };
    let products = |isa| {
        let mut out = vec![0f32; n_columns * n_rows];
        matrix.matmul_with(isa, &x, &mut out).expect("the lengths fit");
        out
    };
    let expected = products(Isa::Scalar);
    for isa in available() {
        let found = products(isa);
        if x.iter().all(|x| x.is_finite()) {
            assert!(same(&found, &expected), "{kind:?} on {isa:?}");
        } else {
            // With infinite inputs, one instruction set may give an infinity and another NaN.
            let is_finite =
                |products: &[f32]| products.iter().map(|x| x.is_finite()).collect::<Vec<_>>();
            assert_eq!(is_finite(&found), is_finite(&expected), "{kind:?} on {isa:?}");
        }
    }
}

/// Encodes log-probabilities of arbitrary logits as codes, and compares logits with arbitrary codes.
pub fn log_probs(data: &[u8]) {
    let mut input = Input(data);
    let (n_vocab, n_rows) = (usize::from(input.u8() & 63), usize::from(input.u8() & 3));
    let tokens: Vec<u32> = (0..n_rows).map(|_| u32::from(input.u8() & 63)).collect();
    let x = input.floats(n_vocab * n_rows);
    let base = input.floats(n_vocab * n_rows);
    let Ok(logits) = Logits::new(&x, n_vocab) else { return };
    let base = Logits::new(&base, n_vocab).expect("the same number of logits");
    let mut codes = vec![0u16; n_rows * logits::log_prob_codes(n_vocab)];
    let is_legal = logits.rows() == n_rows && tokens.iter().all(|&t| (t as usize) < n_vocab);
    assert_eq!(logits::encode_log_probs(logits, &tokens, &mut codes).is_ok(), is_legal);
    assert_eq!(logits::divergence(logits, base, &tokens).is_ok(), is_legal);
    let mut bytes = vec![0u8; 2 * codes.len()];
    input.fill(&mut bytes);
    let arbitrary: Vec<u16> =
        bytes.as_chunks().0.iter().map(|pair| u16::from_le_bytes(*pair)).collect();
    for codes in [&codes, &arbitrary] {
        let found = logits::divergence_from_log_probs(base, codes, &tokens);
        assert_eq!(found.is_ok(), is_legal);
    }
}

/// The rest of an input.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    /// The next byte; zero after the end.
    fn u8(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    fn kind(&mut self) -> TensorType {
        TensorType::ALL[usize::from(self.u8()) % TensorType::ALL.len()]
    }

    fn float(&mut self) -> f32 {
        f32::from_bits(u32::from_le_bytes(std::array::from_fn(|_| self.u8())))
    }

    /// The next `n` bytes, which stay in the input. If it is too short, it repeats.
    fn cycle(&self, n: usize) -> impl Iterator<Item = u8> {
        let rest = if self.0.is_empty() { &[0] } else { self.0 };
        rest.iter().copied().cycle().take(n)
    }

    /// Fills `out` with the next bytes, and removes them from the input.
    fn fill(&mut self, out: &mut [u8]) {
        let n = out.len();
        for (out, byte) in out.iter_mut().zip(self.cycle(n)) {
            *out = byte;
        }
        self.0 = self.0.get(n..).unwrap_or_default();
    }

    /// The next `n` floats. A byte before them chooses any f32, or small integers times a power of two.
    fn floats(&mut self, n: usize) -> Vec<f32> {
        let form = self.u8();
        if form & 1 == 0 {
            let mut bytes = vec![0u8; 4 * n];
            self.fill(&mut bytes);
            let bytes = bytes.as_chunks().0;
            return bytes.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        }
        let scale = f32::from(form >> 1).mul_add(2.0, -127.0).exp2(); // from denormal to huge
        let mut bytes = vec![0u8; n];
        self.fill(&mut bytes);
        let is_signed = self.u8() & 1 > 0;
        let integer = |byte: u8| if is_signed { f32::from(byte as i8) } else { f32::from(byte) };
        bytes.into_iter().map(|byte| integer(byte) * scale).collect()
    }
}

fn available() -> impl Iterator<Item = Isa> {
    Isa::available()
}

fn decoded(isa: Isa, kind: TensorType, blocks: &[u8]) -> Vec<f32> {
    let mut out = vec![f32::NAN; blocks.len() / kind.block_bytes() * kind.block_weights()];
    dispatch::dequantize_row(isa, kind, blocks, &mut out);
    out
}

/// Whether all floats have the same bits. Any NaN equals any other.
fn same(a: &[f32], b: &[f32]) -> bool {
    let is_same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
    a.len() == b.len() && a.iter().zip(b).all(is_same)
}

fn is_increasing(index: &[u8]) -> bool {
    index.windows(2).all(|pair| pair[0] < pair[1])
}

/// Buffers for `n_blocks` blocks of the split layout: Q4_K blocks, indices and residuals of the outliers.
fn split_buffers(n_blocks: usize, count: usize) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let base = n_blocks * TensorType::Q4K.block_bytes();
    (vec![0; base], vec![0; n_blocks * count], vec![0; 2 * n_blocks * count])
}
