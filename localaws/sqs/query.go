package sqs

import "github.com/stepfleet/stepfleet/localaws/api"

// query is SQS's old protocol. Besides "/" it works at a queue's URL, where the path stands for
// the parameter QueueUrl, and where the operations that are about no queue do not exist. Calls may
// leave out the version.
var query = &api.Query{
	Version: "2012-11-05", Others: []string{"", "2011-10-01", "2009-02-01", "2008-01-01"},
	Namespace: "http://queue.amazonaws.com/doc/2012-11-05/",
	FromPath: func(op, path string) (map[string]string, bool) {
		if op == "CreateQueue" || op == "ListQueues" {
			return nil, false
		}
		return map[string]string{"QueueUrl": path}, true
	},
}
