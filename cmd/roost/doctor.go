package main

import (
	"context"
	"os"

	v1 "github.com/roosthq/roost/api/gen/v1"
	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/doctor"
	"github.com/roosthq/roost/internal/host/paths"
	"github.com/roosthq/roost/internal/host/runtime/gvisor"
)

// localDoctor checks this machine when no server answers.
func localDoctor(ctx context.Context) []v1.Check {
	var out []v1.Check
	checks := []doctor.Check{firecrackerPrograms, doctor.QEMU, runsc, deviceMapper(doctorsOwn, os.TempDir)}
	s := doctor.System{Data: dataDir()}
	checks = append(append(checks, doctor.Host(s)...), doctor.Production(s)...)
	for _, f := range doctor.Run(ctx, checks) {
		check := v1.Check{Name: f.Name, Status: v1.CheckStatus(f.Status), Detail: f.Detail}
		if f.Hint != "" {
			check.Hint = &f.Hint
		}
		out = append(out, check)
	}
	return out
}

// runsc looks for the program; only a start of roost tries it.
func runsc(context.Context) doctor.Finding {
	path, err := gvisor.Find()
	if err != nil {
		return doctor.Finding{Name: gvisor.Name, Status: doctor.Warn, Detail: fault.Message(err) + ": no gVisor", Hint: fault.HintOf(err)}
	}
	return doctor.Finding{Name: gvisor.Name, Status: doctor.OK, Detail: path + "; `roost up` tries it"}
}

func dataDir() string {
	if dir := os.Getenv("ROOST_DATA"); dir != "" {
		return dir
	}
	return paths.DefaultData
}
