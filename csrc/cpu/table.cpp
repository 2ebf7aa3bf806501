// The functions of one instruction set, for the bindings to pick from.
#include "simd.h"

namespace medseg {
namespace MEDSEG_ISA {

void eca_forward(int dtype, const EcaForward& a);
void eca_backward(int dtype, const EcaBackward& a);
int64_t eca_scratch(int dtype, const EcaShape& s);
void gate_forward(int dtype, const GateForward& a);
void gate_backward(int dtype, const GateBackward& a);
void triplet_forward(int dtype, const TripletForward& a);
void triplet_backward(int dtype, const TripletBackward& a);
int64_t triplet_scratch(int dtype, const TripletShape& s, bool backward);
void triplet_pool(int dtype, const TripletPart& a);
void triplet_pool_backward(int dtype, const TripletPart& a);
void triplet_apply(int dtype, const TripletPart& a);
void triplet_apply_backward(int dtype, const TripletPart& a);
int64_t triplet_part_scratch(int dtype, const TripletShape& s);
void mde(int dtype, const MdeCall& a);
int64_t mde_scratch(int dtype, const MdeShape& s);
void split_forward(int dtype, const SplitForward& a);
void split_backward(int dtype, const SplitBackward& a);
int64_t split_scratch(int dtype, const SplitShape& s, bool backward);
void split_pool(int dtype, const SplitPart& a);
void split_apply(int dtype, const SplitPart& a);
void split_apply_backward(int dtype, const SplitPart& a);
int64_t split_part_scratch(int dtype, const SplitShape& s);

extern const Kernels kernels = {MEDSEG_NAME(MEDSEG_ISA),
                                eca_forward,
                                eca_backward,
                                eca_scratch,
                                gate_forward,
                                gate_backward,
                                triplet_forward,
                                triplet_backward,
                                triplet_scratch,
                                triplet_pool,
                                triplet_pool_backward,
                                triplet_apply,
                                triplet_apply_backward,
                                triplet_part_scratch,
                                mde,
                                mde_scratch,
                                split_forward,
                                split_backward,
                                split_scratch,
                                split_pool,
                                split_apply,
                                split_apply_backward,
                                split_part_scratch};

}  // namespace MEDSEG_ISA
}  // namespace medseg
