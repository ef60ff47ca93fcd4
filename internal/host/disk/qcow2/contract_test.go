package qcow2_test

import (
	"testing"

	"github.com/roosthq/roost/internal/host/disk/disktest"
	"github.com/roosthq/roost/internal/host/disk/qcow2"
)

func TestContract(t *testing.T) {
	t.Parallel()
	disktest.Run(t, disktest.Env{Driver: qcow2.New(), Open: disktest.OpenFiles})
}
