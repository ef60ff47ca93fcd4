package image

import (
	"regexp"

	"github.com/roosthq/roost/internal/fault"
)

// Recipe says how a template is built.
type Recipe struct {
	Name  string `json:"name"`
	Suite string `json:"suite"`
	// Mirrors are apt source lines that the template itself gets. They are also what it is
	// built from when the host's own apt knows no mirror of the suite.
	Mirrors []string `json:"mirrors"`
	// KernelPackage is a kernel image package, or one that depends on the newest.
	KernelPackage string `json:"kernel_package"`
	// Modules that the guest loads; what they depend on is found and loaded first.
	Modules  []string `json:"modules"`
	Packages []string `json:"packages"`
	// ExcludePaths are dpkg path patterns that are not installed, for size.
	ExcludePaths []string `json:"exclude_paths"`
	IncludePaths []string `json:"include_paths"`
	DefaultUser  string   `json:"default_user"`
	Hostname     string   `json:"hostname"`
	// SlackMB is free space on the disk as built; a sandbox's disk is grown over it.
	SlackMB int `json:"slack_mb"`
	// Customize is a shell script run with the root directory as $1 and the user as $2.
	Customize string `json:"customize"`
}

// form counts the changes in what a build makes of a recipe. 2: the tree.
const form = 2

// Digest is the hash of all that the recipe says, and of what this Roost makes of it: a
// template that lacks something that an older one did not make is built again.
func (r Recipe) Digest() string {
	return hashJSON(struct {
		Recipe Recipe
		Form   int
	}{r, form})
}

var (
	packageForm = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+$`)
	wordForm    = regexp.MustCompile(`^[a-z_][a-z0-9_-]*$`)
)

// Validate names the first field that cannot be.
func (r Recipe) Validate() error {
	if err := ValidName(r.Name); err != nil {
		return err
	}
	for field, value := range map[string]string{
		"suite": r.Suite, "default_user": r.DefaultUser, "hostname": r.Hostname,
	} {
		if !wordForm.MatchString(value) {
			return r.invalid(field, value)
		}
	}
	for _, name := range append([]string{r.KernelPackage}, r.Packages...) {
		if !packageForm.MatchString(name) {
			return r.invalid("packages", name)
		}
	}
	switch {
	case len(r.Mirrors) == 0:
		return r.invalid("mirrors", "")
	case len(r.Modules) == 0:
		return r.invalid("modules", "")
	case r.SlackMB < 0:
		return r.invalid("slack_mb", "below 0")
	}
	return nil
}

func (r Recipe) invalid(field, value string) error {
	return fault.New(fault.Invalid, "use recipe", r.Name, "field "+field+" cannot be \""+value+"\"")
}
