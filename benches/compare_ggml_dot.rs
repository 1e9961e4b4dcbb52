//! Our dot products and ggml's in turn, in one process, one thread, operands in L2: billions of
//! weights a second of both and how many times as fast ours are, and Q4_HIFI against our own Q4_K.
//!
//! `GGML_LIBRARY=... cargo bench --bench compare_ggml_dot -- avx512/Q4_K` runs a part: what is
//! printed as length/ISA/type. The bench tells what to put into `GGML_LIBRARY`.
//!
//! ggml computes with whatever instructions its library was compiled for, or where it has variants
//! of its CPU backend, with the one that is loaded: the first line says which. It gets our rows and
//! makes the activations itself; both are checked against the exact sum.

#![allow(missing_docs)]

#[path = "support/matrix.rs"]
mod matrix;
mod support;

use libloading::Library;
use matrix::{Format, LENGTHS, Matrix, assert_near};
use q4hifi::block::TensorType;
use q4hifi::dot::Activations;
use q4hifi::isa::Isa;
use std::ffi::{c_int, c_void};
use std::hint::black_box;
use std::time::{Duration, Instant};
use support::{ROWS, weights};

const VARIABLE: &str = "GGML_LIBRARY";
const HELP: &str = "compare_ggml_dot: not run, because GGML_LIBRARY does not name a library of ggml.
Its value is the path of libggml-cpu.so, or of a shared object that contains it, after those that
it needs loaded before it. For the ggml in the Python package xllamacpp:

    GGML_LIBRARY=$(python -c \"import sysconfig as s, xllamacpp.xllamacpp as m; \\
        print(s.get_config_var('LIBDIR') + '/' + s.get_config_var('INSTSONAME'), m.__file__, sep=':')\")";

const KINDS: [TensorType; 12] = [
    TensorType::Q4K,
    TensorType::Q5K,
    TensorType::Q6K,
    TensorType::IQ4NL,
    TensorType::IQ4XS,
    TensorType::Q2K,
    TensorType::Q3K,
    TensorType::Q4_0,
    TensorType::Q4_1,
    TensorType::Q5_0,
    TensorType::Q5_1,
    TensorType::Q8_0,
];

/// Outliers a block of the Q4_HIFI rows.
const OUTLIERS: [usize; 2] = [8, 16];

/// Turns of each side, and how long one lasts at least.
const TURNS: usize = 31;
const TURN: Duration = Duration::from_millis(4);

type FromFloat = unsafe extern "C" fn(*const f32, *mut c_void, i64);
type VecDot =
    unsafe extern "C" fn(c_int, *mut f32, usize, *const c_void, usize, *const c_void, usize, c_int);

/// `struct ggml_type_traits_cpu`, whose first fields have kept their places since 2024.
#[repr(C)]
struct Traits {
    from_float: Option<FromFloat>,
    vec_dot: Option<VecDot>,
    vec_dot_type: c_int,
}

/// The CPU backend of ggml.
struct Ggml {
    traits: unsafe extern "C" fn(c_int) -> *const Traits,
    /// The instruction sets that it was compiled for.
    features: Vec<&'static str>,
}

impl Ggml {
    /// From the libraries at `paths`, of which the last is ggml's. They stay loaded.
    fn load(paths: &str) -> Result<Self, libloading::Error> {
        let libraries = std::env::split_paths(paths).map(|path| open(&path));
        let mut libraries = libraries.collect::<Result<Vec<_>, _>>()?;
        let library: &'static Library = Box::leak(Box::new(libraries.pop().expect("a path")));
        std::mem::forget(libraries);
        // SAFETY: the functions' types are those of ggml-cpu.h.
        unsafe {
            let init = library.get::<unsafe extern "C" fn()>(b"ggml_cpu_init")?;
            init();
            let mut features = Vec::new();
            for name in ["avx2", "fma", "avx_vnni", "avx512", "avx512_vbmi", "avx512_vnni"] {
                let has = format!("ggml_cpu_has_{name}");
                if library.get::<unsafe extern "C" fn() -> c_int>(has.as_bytes())?() != 0 {
                    features.push(name);
                }
            }
            Ok(Self { traits: *library.get(b"ggml_get_type_traits_cpu")?, features })
        }
    }

    fn traits(&self, kind: c_int) -> &Traits {
        // SAFETY: ggml has the type, and a table of all types that lives as long as the library.
        unsafe { &*(self.traits)(kind) }
    }

    /// The dot product of a type's rows, and activations as it takes them.
    fn prepare(&self, kind: TensorType, x: &[f32]) -> (VecDot, Vec<u8>) {
        let traits = self.traits(kind.id() as c_int);
        let from_float = self.traits(traits.vec_dot_type).from_float.expect("a quantizer");
        let mut y = vec![0u8; 4 * x.len()];
        // SAFETY: no format takes more than the four bytes of a float.
        unsafe { from_float(x.as_ptr(), y.as_mut_ptr().cast(), x.len() as i64) };
        (traits.vec_dot.expect("a dot product"), y)
    }
}

/// Opens a library so that the next one finds its symbols.
fn open(path: &std::path::Path) -> Result<Library, libloading::Error> {
    #[cfg(unix)]
    // SAFETY: loading runs the libraries' initializers, which the user asked for.
    unsafe {
        use libloading::os::unix;
        let flags = unix::RTLD_LAZY | unix::RTLD_GLOBAL;
        Ok(unix::Library::open(Some(path), flags)?.into())
    }
    #[cfg(not(unix))]
    // SAFETY: as above.
    unsafe {
        Library::new(path)
    }
}

fn dot_ggml(vec_dot: VecDot, matrix: &Matrix, y: &[u8], out: &mut [f32]) {
    let bytes = matrix.data.len() / ROWS;
    for (row, out) in matrix.data.chunks_exact(bytes).zip(out) {
        let (n, row, y) = (matrix.n as c_int, row.as_ptr().cast(), y.as_ptr().cast());
        // SAFETY: a row and a column of `n`; the strides are for several rows at once.
        unsafe { vec_dot(n, out, 0, row, 0, y, 0, 1) };
    }
}

/// Median seconds of a call of `ours` and of `theirs`, and the median ratio of their turns.
fn compare(once: bool, mut ours: impl FnMut(), mut theirs: impl FnMut()) -> [f64; 3] {
    let seconds = |call: &mut dyn FnMut(), repeats: u32| {
        let started = Instant::now();
        for _ in 0..repeats {
            call();
        }
        started.elapsed().as_secs_f64() / f64::from(repeats)
    };
    let (repeats, turns) = if once {
        (1, 1)
    } else {
        seconds(&mut ours, 10);
        let slow = seconds(&mut ours, 10).max(seconds(&mut theirs, 10));
        ((TURN.as_secs_f64() / slow).ceil() as u32, TURNS)
    };
    let turns: Vec<[f64; 3]> = (0..turns)
        .map(|_| [seconds(&mut ours, repeats), seconds(&mut theirs, repeats)])
        .map(|[ours, theirs]| [ours, theirs, theirs / ours])
        .collect();
    [0, 1, 2].map(|i| {
        let mut values: Vec<f64> = turns.iter().map(|turn| turn[i]).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    })
}

/// A matrix and its column of activations.
struct Case {
    matrix: Matrix,
    isa: Isa,
    y: Activations,
    name: String,
}

impl Case {
    fn new(format: Format, isa: Isa, x: &[f32]) -> Self {
        let name = format!("{}/{}/{}", x.len(), isa.name(), format.name());
        let y = format.activations(isa, x);
        Self { matrix: Matrix::new(format, x.len()), isa, y, name }
    }

    fn dot(&self, out: &mut [f32]) {
        self.matrix.dot(self.isa, black_box(&self.y), black_box(out));
    }

    fn check(&self, out: &[f32]) {
        assert_near(out, &self.matrix.exact(&self.y), &self.name);
    }

    fn print(&self, [ours, theirs, ratio]: [f64; 3]) {
        let rate = |seconds: f64| (ROWS * self.matrix.n) as f64 / seconds / 1e9;
        println!("{:<24}{:>9.1}{:>9.1}{ratio:>8.2}x", self.name, rate(ours), rate(theirs));
    }
}

fn head(first: &str, ours: &str, theirs: &str) {
    println!("{first:<24}{ours:>9}{theirs:>9}{:>9}", "ratio");
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let once = arguments.iter().any(|argument| argument == "--test");
    let filters: Vec<&String> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
    let wanted =
        |case: &Case| filters.is_empty() || filters.iter().any(|f| case.name.contains(f.as_str()));

    let Some(paths) = std::env::var(VARIABLE).ok().filter(|paths| !paths.is_empty()) else {
        return println!("{HELP}");
    };
    let ggml = Ggml::load(&paths).unwrap_or_else(|error| panic!("{VARIABLE}={paths}: {error}"));
    let cases = |formats: &[Format]| {
        let isas = Isa::available().filter(|&isa| isa != Isa::Scalar);
        let isas = LENGTHS.into_iter().flat_map(|n| isas.clone().map(move |isa| (n, isa)));
        let cases = isas.flat_map(|(n, isa)| {
            formats.iter().map(move |&format| Case::new(format, isa, &weights(n)))
        });
        cases.filter(wanted).collect::<Vec<Case>>()
    };
    let (mut a, mut b) = ([0f32; ROWS], [0f32; ROWS]);

    println!("billions of weights a second, one thread; ggml with {}", ggml.features.join(", "));
    head("length/ISA/type", "q4hifi", "ggml");
    for case in cases(&KINDS.map(Format::Plain)) {
        let (vec_dot, y) = ggml.prepare(case.matrix.format.kind(), &weights(case.matrix.n));
        let ours = || case.dot(&mut a);
        let theirs = || dot_ggml(vec_dot, &case.matrix, black_box(&y), black_box(&mut b));
        let times = compare(once, ours, theirs);
        case.check(&a);
        case.check(&b);
        case.print(times);
    }

    println!();
    head("length/ISA/type", "Q4_HIFI", "Q4_K");
    for case in cases(&OUTLIERS.map(Format::Hifi)) {
        let plain = Case::new(Format::Plain(TensorType::Q4K), case.isa, &weights(case.matrix.n));
        case.print(compare(once, || case.dot(&mut a), || plain.dot(&mut b)));
        case.check(&a);
    }
}
