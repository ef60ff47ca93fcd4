// Package guest is the inside of the in-VM lane: PID 1 of its VM, and what it and the lane
// outside say to one another.
//
// It loads modules, mounts what a Linux system has, runs one command, carries its output to
// the serial ports and says how it ended. It never ends by itself: the lane outside ends the
// VM when it has read everything.
package guest

// What stands in the first root file system, beside the tools.
const (
	PlanPath  = "/lane.json"
	ModuleDir = "/lib/modules"
	// ScratchSerial is the block device that becomes Plan.Scratch.
	ScratchSerial = "scratch"
)

// The ports' names. Stderr is silent when Plan.Merged.
const (
	StdoutPort  = "roost.stdout"
	StderrPort  = "roost.stderr"
	ControlPort = "roost.control"
)

// Plan is what one VM is for.
type Plan struct {
	// Modules are loaded in this order: names of files below ModuleDir.
	Modules []Module
	// Scratch is where the writable ext4 file system goes.
	Scratch string
	Drives  []Drive
	// Args is the command; Dir is its folder, made if it is missing.
	Args, Env []string
	Dir       string
	// Merged sends both outputs through StdoutPort, in the order in which they were written:
	// outside they go to one file, where a line of one must not fall into a line of the other.
	Merged bool
}

// Module is a kernel module with its parameters.
type Module struct{ Name, Params string }

// Drive is a read-only file system, found by its serial number.
type Drive struct{ Serial, Path string }

// Report is a line on ControlPort from the guest.
type Report struct {
	// Started: the command runs.
	Started bool `json:",omitempty"`
	// Failed says why the VM cannot do what the plan says.
	Failed string `json:",omitempty"`
	Ended  *Ended `json:",omitempty"`
}

// Ended is how the command ended.
type Ended struct {
	// Code is the exit status; Signal is not 0 when one killed the command.
	Code, Signal int
	// Stdout and Stderr are how many bytes went through each port.
	Stdout, Stderr int64
	// Left are devices, processes and mounts that the command left in the VM.
	Left []string
}

// Order is a line on ControlPort to the guest.
type Order struct {
	// Signal goes to the command.
	Signal int `json:",omitempty"`
	// Blocked lets the kernel tell on its console which tasks wait in it, and where.
	Blocked bool `json:",omitempty"`
}
