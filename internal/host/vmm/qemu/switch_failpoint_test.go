//go:build failpoints

package qemu_test

import (
	"testing"

	"github.com/roosthq/roost/internal/host/vmm"
	"github.com/roosthq/roost/internal/host/vmm/vmmtest"
)

func TestInterruptedSwitch(t *testing.T) {
	vmmtest.Interrupted(t, func(t testing.TB) vmm.Driver { return newDriver(t) }, []string{
		"qemu.switch.half", "qemu.switch.given", "qemu.switch.file", "qemu.switch.node", "qemu.switch.done",
	})
}
