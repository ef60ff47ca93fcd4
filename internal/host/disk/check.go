package disk

import (
	"fmt"

	"github.com/roosthq/roost/internal/fault"
)

// CheckOpen says why a live disk of sizeBytes may not stand on s; every driver's Open asks it
// before it makes anything.
func (s Stack) CheckOpen(sizeBytes int64) error {
	if err := s.Check(); err != nil {
		return err
	}
	object := fmt.Sprintf("disk of %d bytes over %s", sizeBytes, s.Base.Path)
	if len(s.Layers) >= MaxDepth {
		cause := fmt.Sprintf("the stack has %d layers, the bound is %d", len(s.Layers), MaxDepth)
		return fault.New(fault.FailedPrecondition, "open", object, cause).WithHint("merge its layers first")
	}
	if sizeBytes%SizeUnit != 0 {
		return fault.New(fault.Invalid, "open", object, fmt.Sprintf("the size is not a multiple of %d", SizeUnit))
	}
	if least := s.SizeBytes(); sizeBytes < least {
		return fault.New(fault.Invalid, "open", object, fmt.Sprintf("the disk it stands on has %d bytes", least))
	}
	return nil
}

// Check says what is wrong with the stack's sizes: they never fall from one layer to the next.
func (s Stack) Check() error {
	if s.Base.Path == "" || s.Base.SizeBytes <= 0 {
		return fault.New(fault.Invalid, "use", "disk stack", "it has no base with a size")
	}
	below := s.Base.SizeBytes
	for _, l := range s.Layers {
		if l.SizeBytes < below || l.SizeBytes%SizeUnit != 0 {
			cause := fmt.Sprintf("%d bytes over %d, in units of %d", l.SizeBytes, below, SizeUnit)
			return fault.New(fault.Invalid, "use", "layer "+l.Path, cause)
		}
		below = l.SizeBytes
	}
	return nil
}
