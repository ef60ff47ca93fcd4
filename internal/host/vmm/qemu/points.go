package qemu

import "github.com/roosthq/roost/internal/failpoint"

// The steps of SwitchDisk, in their order. After the last one the VM writes to its new disk.
var _ = failpoint.Declare(
	"qemu.switch.half", // the set has one of the new top's two descriptors
	"qemu.switch.given",
	"qemu.switch.file",
	"qemu.switch.node",
	"qemu.switch.done",
)
