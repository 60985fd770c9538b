// Run an AOTInductor package on raw float32 files, without Python: see docs/engines.md for the command that builds it.
//
//   aoti_run PACKAGE.pt2 OUTPUT.raw cpu|cuda INPUT.f32:1,2464 ...
//
// Each input is a file of little-endian float32 in C order, followed by its shape; the first output is written the same
// way in its own type, and its type and shape are printed. Loading a package runs the native code in it, so it must be
// one that was compiled here. Exit code 2: the arguments or an input file; 1: the package failed.

#include <ATen/ops/empty.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdint>
#include <exception>
#include <fstream>
#include <functional>
#include <iostream>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

struct BadInput : std::runtime_error {
  using std::runtime_error::runtime_error;
};

std::vector<int64_t> parse_shape(const std::string& text) {
  std::vector<int64_t> shape;
  std::stringstream parts(text);
  for (std::string part; std::getline(parts, part, ',');) {
    if (part.empty() || part.size() > 9 || part.find_first_not_of("0123456789") != std::string::npos) {
      throw BadInput("the shape '" + text + "' is no list of whole numbers such as 1,2464");
    }
    shape.push_back(std::stoll(part));
  }
  return shape;
}

// FILE:SHAPE -> a float32 tensor on the CPU.
at::Tensor read_input(const std::string& argument) {
  const auto colon = argument.rfind(':');
  if (colon == std::string::npos) {
    throw BadInput("the input '" + argument + "' has no shape; expected FILE:1,2464");
  }
  const auto name = argument.substr(0, colon);
  const auto shape = parse_shape(argument.substr(colon + 1));
  const auto count = std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
  std::ifstream file(name, std::ios::binary | std::ios::ate);
  const auto wanted = static_cast<std::streamoff>(count * static_cast<int64_t>(sizeof(float)));
  if (!file || file.tellg() != wanted) {
    throw BadInput("the input " + name + " cannot be read, or does not have " + std::to_string(wanted) + " bytes");
  }
  at::Tensor tensor = at::empty(shape, at::TensorOptions().dtype(at::kFloat));
  file.seekg(0);
  file.read(static_cast<char*>(tensor.mutable_data_ptr()), wanted);
  return tensor;
}

void write_output(const at::Tensor& tensor, const std::string& name) {
  std::ofstream file(name, std::ios::binary);
  file.write(static_cast<const char*>(tensor.const_data_ptr()), static_cast<std::streamsize>(tensor.nbytes()));
  if (!file.flush()) {
    throw BadInput("the output " + name + " cannot be written");
  }
}

void run(const std::vector<std::string>& arguments) {
  if (arguments.size() < 4 || (arguments[2] != "cpu" && arguments[2] != "cuda")) {
    throw BadInput("usage: aoti_run PACKAGE.pt2 OUTPUT.raw cpu|cuda INPUT.f32:1,2464 ...");
  }
  const at::Device device(arguments[2]);
  std::vector<at::Tensor> inputs;
  for (size_t i = 3; i < arguments.size(); ++i) {
    inputs.push_back(read_input(arguments[i]).to(device));
  }
  torch::inductor::AOTIModelPackageLoader loader(arguments[0]);
  const at::Tensor output = loader.run(inputs).at(0).to(at::kCPU).contiguous();
  write_output(output, arguments[1]);
  std::cout << output.dtype().name() << ' ' << output.sizes() << '\n';
}

}  // namespace

int main(int count, char** values) {
  try {
    run(std::vector<std::string>(values + 1, values + count));
    return 0;
  } catch (const BadInput& error) {
    std::cerr << "error: " << error.what() << '\n';
    return 2;
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << '\n';
    return 1;
  }
}
