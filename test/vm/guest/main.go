package guest

import (
	"encoding/json"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Main is PID 1. It does not return.
func Main() {
	control, err := run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "lane:", err) // the console
		if control != nil {
			_ = report(control, Report{Failed: err.Error()})
		}
	}
	for { // PID 1 may not end; the lane outside ends the VM, or the VM itself when it cannot hear
		if control == nil {
			_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
		}
		_ = unix.Pause()
	}
}

func run() (control *os.File, err error) {
	if err := firstMounts(); err != nil {
		return nil, err
	}
	plan, err := readPlan()
	if err != nil {
		return nil, err
	}
	if err := loadModules(plan.Modules); err != nil {
		return nil, err
	}
	ports, err := openPorts()
	if err != nil {
		return nil, err
	}
	control = ports.control
	if err := prepare(plan); err != nil {
		return control, err
	}
	return control, execute(plan, ports)
}

func readPlan() (Plan, error) {
	data, err := os.ReadFile(PlanPath)
	if err != nil {
		return Plan{}, err
	}
	var plan Plan
	if err := json.Unmarshal(data, &plan); err != nil {
		return Plan{}, fmt.Errorf("read %s: %w", PlanPath, err)
	}
	return plan, nil
}

func report(control *os.File, r Report) error {
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = control.Write(append(line, '\n'))
	return err
}
