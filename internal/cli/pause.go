package cli

import (
	"context"

	"github.com/spf13/cobra"

	v1 "github.com/roosthq/roost/api/gen/v1"
)

func (a *app) pauseCommand() *cobra.Command {
	var diskOnly bool
	cmd := &cobra.Command{
		Use:   "pause ID...",
		Short: "Save sandboxes' memory and disks and free the host",
		Long: `Save sandboxes' memory and disks and free the host. Pausing a paused sandbox is a success.

--disk-only saves no memory: processes end, and a resume boots. It takes less disk, and the saved
disk needs no particular build of the runtime or CPU.

With --json one sandbox is printed as it is, several as {"sandboxes":[…],"failed":[{"id","error"}]}.`,
		Example: `  roost pause $id
  roost pause $id --json | jq .phases
  roost pause --disk-only $id
  roost pause $(roost ls -q --state running)`,
		Args: takes("ID…"),
	}
	cmd.RunE = a.onSandboxes("pausing", func(ctx context.Context, c *client, id string) (v1.Sandbox, error) {
		return answer[v1.Sandbox](c.api.PauseSandboxWithResponse(ctx, id, v1.Pause{DiskOnly: given(cmd, "disk-only", diskOnly)}))
	}, func(v1.Sandbox) {})
	cmd.Flags().BoolVar(&diskOnly, "disk-only", false, "save the disk without memory and processes")
	return cmd
}
