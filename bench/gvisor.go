package main

import (
	"context"

	"github.com/roosthq/roost/bench/harness"
)

// gvisorFigures in the order of the gVisor issue. "-only gVisor" measures these alone.
func gvisorFigures(all *servers) []figure {
	gvisor := func(name string, share int, f func(s *server) measure) figure {
		return figure{name, fewer(share, all.with(onGVisor, f))}
	}
	seconds := func(names ...string) (parts []harness.Part) {
		for _, name := range names {
			parts = append(parts, harness.Part{Name: name, Unit: harness.Seconds})
		}
		return parts
	}
	work := func(what, name string) figure {
		title := what + ", in a gVisor sandbox ÷ on the host"
		return figure{title, fewer(4, all.works(onGVisor, name, seconds(title)))}
	}
	const files = "10,000 small files, in a gVisor sandbox ÷ on the host: "
	const loopQEMU = "a Python loop, in a QEMU sandbox without KVM ÷ on the host (beside gVisor)"
	const beside = "create to first exec on gVisor ÷ the same on QEMU without KVM"
	resumed, resume := pair("resume to first exec ÷ create to first exec, on gVisor", 1.3, resumeExec, warmExec)
	return []figure{
		gvisor("create to first exec on gVisor ÷ `runsc restore` by a bare script", 1, func(s *server) measure { return s.againstBareRunsc }),
		{beside, fewer(3, all.both(func(gvisor, qemu *server) measure {
			return compare(beside, 0, gvisor.createExec(false), qemu.createExec(false))
		}))},
		gvisor(resumed, 2, resume),
		gvisor("exec of true, warm connection, on gVisor", 1, func(s *server) measure { return s.execTrue(", on gVisor") }),
		work("a Python loop", "loop"),
		work("git clone of a local repository", "git"),
		work("pip install of a local wheel", "pip"),
		work("gcc of a small C program", "gcc"),
		{loopQEMU, fewer(10, all.works(onQEMU, "loop", seconds(loopQEMU)))},
		{files, fewer(5, all.works(onGVisor, "files", seconds(files+"made", files+"read", files+"removed")))},
		{"pause and resume, gVisor ÷ QEMU", fewer(10, all.both(pausesBeside))},
		gvisor("pause and resume of one that wrote 2 GB to disk on gVisor", 15, func(s *server) measure { return s.pausesLarge }),
		gvisor("50 idle sandboxes on gVisor", 15, func(s *server) measure { return s.idle50 }),
	}
}

// fewer measures a share of the pairs: one in so many, where each takes long.
func fewer(share int, m measure) measure {
	return func(ctx context.Context, pairs int) ([]harness.Result, error) { return m(ctx, max(pairs/share, 1)) }
}
