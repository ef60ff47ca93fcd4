package qemu_test

import (
	"testing"

	"github.com/roosthq/roost/internal/host/vmm/vmmtest"
)

func TestScratch(t *testing.T) { vmmtest.Scratch(t, newDriver(t), vmmtest.Build(t)) }
