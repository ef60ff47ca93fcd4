package doctor

import (
	"context"
	"slices"
	"strings"
)

// limiting are the controllers that sandboxes' limits need.
var limiting = []string{"cpu", "memory", "pids"}

// cgroups says which version there is and what it can limit; what each runtime makes of it is the
// runtime's line.
func (s System) cgroups(context.Context) Finding {
	const v2 = "mount cgroup v2 at /sys/fs/cgroup, or boot with systemd.unified_cgroup_hierarchy=1"
	version, have := s.controllers()
	var missing []string
	for _, c := range limiting {
		if !slices.Contains(have, c) {
			missing = append(missing, c)
		}
	}
	switch {
	case version == "" || len(missing) == len(limiting):
		return warn("cgroups", "none that can limit anything is mounted at /sys/fs/cgroup", v2)
	case len(missing) == 0:
		return ok("cgroups", "version "+version+", with "+strings.Join(limiting, ", "))
	case version == "2":
		return warn("cgroups", "version 2 without "+strings.Join(missing, ", ")+": nothing limits those",
			"delegate them: Delegate=yes in roost's unit, or echo '+"+strings.Join(missing, " +")+
				"' >cgroup.subtree_control in the cgroups above; for memory, boot without cgroup_disable=memory")
	}
	return warn("cgroups", "version 1 without "+strings.Join(missing, ", ")+": nothing limits those", v2)
}

// controllers that are there, of the version that has any.
func (s System) controllers() (version string, have []string) {
	if list, err := s.read("sys/fs/cgroup/cgroup.controllers"); err == nil {
		return "2", strings.Fields(list)
	}
	for _, c := range limiting {
		if s.exists("sys/fs/cgroup/" + c + "/cgroup.procs") {
			version, have = "1", append(have, c)
		}
	}
	return version, have
}
