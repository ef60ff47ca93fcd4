package microvm

import (
	"errors"
	"os"

	"github.com/roosthq/roost/internal/fault"
)

// What still works when part of a capture is damaged. ID stands for the sandbox's.
const (
	memoryHint = "the sandbox's disk is untouched: `roost resume --cold ID` boots from it"
	diskHint   = "the sandbox cannot start from this capture: put back a copy of the file, or use an older snapshot or a fork"
)

// damaged is of a part of a capture's memory.
func damaged(object, cause string) error {
	return fault.New(fault.DataLoss, "verify", object, "damaged: "+cause).WithHint(memoryHint)
}

// missing makes a file of a capture's memory that is not there damage; other errors stay.
func missing(err error, object string) error {
	if errors.Is(err, os.ErrNotExist) || fault.Is(err, fault.NotFound) {
		return damaged(object, "it is missing")
	}
	return err
}
