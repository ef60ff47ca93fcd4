package qcow2

import (
	"context"
	"os"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/disk"
)

// Holds implements disk.Driver: a VM writes to the file itself.
func (Driver) Holds(_ context.Context, live disk.Live, at os.FileInfo) (bool, error) {
	info, err := os.Stat(live.Path)
	if err != nil {
		return false, fault.Wrap(err, "look at", "disk "+live.Path)
	}
	return os.SameFile(info, at), nil
}
