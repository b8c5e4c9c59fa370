package cloudwatch

import (
	"encoding/json"

	"github.com/stepfleet/stepfleet/localaws/api"
)

// listOf names a list in its tokens: by operation, region, account, and whatever of the request
// chooses its items. The request comes without what may differ from page to page.
func listOf(c *api.Call, request any) string {
	name, err := json.Marshal([]any{c.Op, c.Region, c.Account, request})
	if err != nil {
		panic(err) // what has been decoded can be encoded
	}
	return string(name)
}
