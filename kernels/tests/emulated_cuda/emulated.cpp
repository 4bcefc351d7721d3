// One type's kernels as a library for tests: compiled with -DSOURCE="float32.cu" and
// -DLAUNCHERS=kFloat32Launchers, and with -D__CUDA_ARCH__ for code specific to an architecture.
#include SOURCE

using namespace deformable_attention_cuda;

namespace {

Arguments read_arguments(void* const* pointers, const int64_t* numbers, const int64_t* shapes) {
  Arguments args{};
  args.value = pointers[0];
  args.points = pointers[1];
  args.weights = pointers[2];
  args.reference_points = pointers[3];
  args.output = pointers[4];
  args.grad = pointers[5];
  args.grad_value = pointers[6];
  args.grad_points = pointers[7];
  args.grad_weights = pointers[8];
  args.grad_samples = pointers[9];
  args.grad_pixels = pointers[10];
  args.grad_references = pointers[11];
  args.converted = pointers[12];
  args.fixed_point = static_cast<FixedPoint*>(pointers[13]);
  args.batch = numbers[0];
  args.queries = numbers[1];
  args.tokens = numbers[2];
  args.heads = static_cast<int32_t>(numbers[3]);
  args.width = static_cast<int32_t>(numbers[4]);
  args.num_levels = static_cast<int32_t>(numbers[5]);
  args.num_points = static_cast<int32_t>(numbers[6]);
  args.coordinates = static_cast<int32_t>(numbers[7]);
  args.points_are_float32 = numbers[8] != 0;
  int64_t start = 0;
  for (int level = 0; level < args.num_levels; ++level) {
    int64_t height = shapes[2 * level], width = shapes[2 * level + 1];
    args.levels[level] = {static_cast<int32_t>(height), static_cast<int32_t>(width), start};
    start += height * width;
  }
  return args;
}

}  // namespace

// `operation` is "forward" or "backward". Returns nullptr or an error message.
extern "C" const char* emulate(const char* operation, void* const* pointers,
                               const int64_t* numbers, const int64_t* shapes, int is_reversed) {
  Arguments args = read_arguments(pointers, numbers, shapes);
  emulated::machine().is_reversed = is_reversed != 0;
  if (std::strcmp(operation, "forward") == 0) return LAUNCHERS.forward(args, nullptr);
  if (!args.fixed_point) return LAUNCHERS.backward(args, nullptr);
  const char* error = LAUNCHERS.measure_fixed_point(args, nullptr);
  if (!error) error = LAUNCHERS.backward(args, nullptr);
  if (!error) error = LAUNCHERS.convert_fixed_point(args, nullptr);
  return error;
}
